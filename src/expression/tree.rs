//! The tree of an expression that was compiled.

use kube_cel::cel::Value;
use kube_cel::cel::common::ast::IdedExpr;
use regex::Regex;

use super::functions::Function;

/// An expression's part.
pub(super) struct Node {
    /// The byte of the text where an error points.
    pub at: usize,
    /// Nodes on the longest way down, this one included.
    pub depth: usize,
    pub kind: Kind,
}

pub(super) enum Kind {
    Literal(Value),
    Variable(&'static str),
    /// What a macro iterates over: the how manieth of the macros around it, from 0.
    Element(usize),
    Select(Box<Node>, String),
    Has(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Or(Vec<Node>),
    And(Vec<Node>),
    Conditional(Box<[Node; 3]>),
    Binary(Operator, Box<[Node; 2]>),
    List(Vec<Node>),
    Map(Vec<[Node; 2]>),
    Macro {
        role: Macro,
        range: Box<Node>,
        body: Box<Node>,
    },
    Matches {
        role: Match,
        pattern: Regex,
        /// What a byte of the text may cost to search.
        steps_a_byte: u64,
        arguments: Vec<Node>,
    },
    /// A function of this room.
    Own(Own, Vec<Node>),
    /// A function of the library: `call` names it and its arguments by their indices, the receiver before the others.
    Call {
        function: &'static Function,
        call: Box<IdedExpr>,
        arguments: Vec<Node>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }
}

pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// With the condition under which an element counts, if there is one.
    Map(Option<Box<Node>>),
}

/// What is asked of a pattern.
#[derive(Clone, Copy)]
pub(super) enum Match {
    Matches,
    Find,
    FindAll,
}

/// Functions that are evaluated here: the most frequent ones, and those that the library takes otherwise than the apiserver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Size,
    StartsWith,
    EndsWith,
    Contains,
    Join,
    Sum,
    String,
    Dyn,
}

impl Own {
    pub fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Contains => "contains",
            Self::Join => "join",
            Self::Sum => "sum",
            Self::String => "string",
            Self::Dyn => "dyn",
        }
    }
}

impl Node {
    /// The parts right below.
    pub fn children(&self) -> Vec<&Self> {
        match &self.kind {
            Kind::Literal(_) | Kind::Variable(_) | Kind::Element(_) => Vec::new(),
            Kind::Select(operand, _) | Kind::Has(operand, _) | Kind::Not(operand) | Kind::Negate(operand) => {
                vec![operand]
            }
            Kind::Index(operand, index) => vec![operand, index],
            Kind::Or(parts)
            | Kind::And(parts)
            | Kind::List(parts)
            | Kind::Matches { arguments: parts, .. }
            | Kind::Own(_, parts)
            | Kind::Call { arguments: parts, .. } => parts.iter().collect(),
            Kind::Conditional(parts) => parts.iter().collect(),
            Kind::Binary(_, parts) => parts.iter().collect(),
            Kind::Map(entries) => entries.iter().flatten().collect(),
            Kind::Macro { role: Macro::Map(Some(condition)), range, body } => vec![range, condition, body],
            Kind::Macro { range, body, .. } => vec![range, body],
        }
    }

    pub fn reads(&self, variable: &str, path: &[&str]) -> bool {
        if let Some((root, fields)) = self.path() {
            return root == variable && fields.iter().zip(path).all(|(field, wanted)| field == wanted);
        }
        self.children().into_iter().any(|child| child.reads(variable, path))
    }

    /// The variable and the fields that lead to this node, where nothing else does.
    fn path(&self) -> Option<(&'static str, Vec<&str>)> {
        let (operand, field) = match &self.kind {
            Kind::Variable(name) => return Some((name, Vec::new())),
            Kind::Select(operand, field) | Kind::Has(operand, field) => (operand, field.as_str()),
            Kind::Index(operand, index) => match &index.kind {
                Kind::Literal(Value::String(key)) => (operand, key.as_str()),
                _ => return None,
            },
            _ => return None,
        };
        let (root, mut fields) = operand.path()?;
        fields.push(field);
        Some((root, fields))
    }
}
