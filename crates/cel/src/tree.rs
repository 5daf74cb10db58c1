//! The tree of an expression that was compiled.

use super::functions::Function;
use super::functions::regex::{Match, Pattern};
use super::types::Type;
use super::value::Value;

/// An expression's part.
pub(super) struct Node {
    /// The byte of the text where an error points.
    pub at: usize,
    /// Nodes on the longest way down, this one included.
    pub depth: usize,
    /// What is known of its value's type.
    pub of: Type,
    pub kind: Kind,
}

pub(super) enum Kind {
    Literal(Value),
    Variable(&'static str),
    /// A name that a macro gave: the how manieth of those around it, from 0.
    Element(usize),
    Select(Box<Node>, String),
    /// `x.?field`
    OptionalSelect(Box<Node>, String),
    /// `has(x.field)`; whether the field is one that may be missing, `x.?field`, does not matter.
    Has(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    /// `x[?index]`
    OptionalIndex(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Or(Vec<Node>),
    And(Vec<Node>),
    Conditional(Box<[Node; 3]>),
    Binary(Operator, Box<[Node; 2]>),
    /// Of each element whether it is an optional that is left out where it has no value.
    List(Vec<(bool, Node)>),
    Map(Vec<(bool, [Node; 2])>),
    Macro(Box<Comprehension>),
    /// `x.optMap(name, body)`, and `optFlatMap` where `flat`.
    OptionalMap {
        flat: bool,
        value: Box<Node>,
        body: Box<Node>,
    },
    /// `x.orValue(y)`, and `x.or(y)` where `optional`.
    Otherwise {
        optional: bool,
        parts: Box<[Node; 2]>,
    },
    /// A pattern that is part of the expression.
    Matches {
        role: Match,
        pattern: Pattern,
        /// The text, and how many matches are wanted.
        arguments: Vec<Node>,
    },
    Call {
        function: &'static Function,
        arguments: Vec<Node>,
    },
}

/// A macro that goes over a list or a map.
pub(super) struct Comprehension {
    pub role: Macro,
    /// Whether it has a name for the index or key as well as for the value.
    pub two: bool,
    pub range: Node,
    /// The condition under which an element counts, if there is one.
    pub condition: Option<Node>,
    pub body: Node,
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

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// `map`, and `transformList`.
    Map,
    TransformMap,
    TransformMapEntry,
    SortBy,
}

impl Node {
    /// The parts right below.
    pub fn children(&self) -> Vec<&Self> {
        match &self.kind {
            Kind::Literal(_) | Kind::Variable(_) | Kind::Element(_) => Vec::new(),
            Kind::Select(operand, _)
            | Kind::OptionalSelect(operand, _)
            | Kind::Has(operand, _)
            | Kind::Not(operand)
            | Kind::Negate(operand) => vec![operand],
            Kind::Index(operand, index) | Kind::OptionalIndex(operand, index) => vec![operand, index],
            Kind::Or(parts)
            | Kind::And(parts)
            | Kind::Matches { arguments: parts, .. }
            | Kind::Call { arguments: parts, .. } => parts.iter().collect(),
            Kind::List(elements) => elements.iter().map(|(_, element)| element).collect(),
            Kind::Conditional(parts) => parts.iter().collect(),
            Kind::Binary(_, parts) | Kind::Otherwise { parts, .. } => parts.iter().collect(),
            Kind::Map(entries) => entries.iter().flat_map(|(_, entry)| entry).collect(),
            Kind::Macro(comprehension) => [&comprehension.range]
                .into_iter()
                .chain(&comprehension.condition)
                .chain([&comprehension.body])
                .collect(),
            Kind::OptionalMap { value, body, .. } => vec![value, body],
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
            Kind::Select(operand, field) | Kind::OptionalSelect(operand, field) | Kind::Has(operand, field) => {
                (operand, field.as_str())
            }
            Kind::Index(operand, index) | Kind::OptionalIndex(operand, index) => match &index.kind {
                Kind::Literal(Value::String(key)) => (operand, &**key),
                _ => return None,
            },
            _ => return None,
        };
        let (root, mut fields) = operand.path()?;
        fields.push(field);
        Some((root, fields))
    }
}
