//! The syntax tree of a compiled expression.

use super::functions::Function;
use super::functions::regex::{Match, Pattern};
use super::types::Type;
use super::value::Value;

/// A part of an expression.
pub(super) struct Node {
    /// The byte offset in the text that errors point to.
    pub at: usize,
    /// Height of the subtree, including this node.
    pub depth: usize,
    /// The type of the value, as far as it is known.
    pub of: Type,
    pub kind: Kind,
}

pub(super) enum Kind {
    Literal(Value),
    Variable(&'static str),
    /// A variable of a macro: its position among the variables of all enclosing macros, starting at 0.
    Element(usize),
    Select(Box<Node>, String),
    /// `x.?field`
    OptionalSelect(Box<Node>, String),
    /// `has(x.field)`
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
    /// The flag of an element marks an optional that is omitted if it is empty.
    List(Vec<(bool, Node)>),
    Map(Vec<(bool, [Node; 2])>),
    Macro(Box<Comprehension>),
    /// `x.optMap(name, body)`, or `optFlatMap` if `flat`.
    OptionalMap {
        flat: bool,
        value: Box<Node>,
        body: Box<Node>,
    },
    /// `x.orValue(y)`, or `x.or(y)` if `optional`.
    Otherwise {
        optional: bool,
        parts: Box<[Node; 2]>,
    },
    /// A match with a pattern that is a literal.
    Matches {
        role: Match,
        pattern: Pattern,
        /// The text, the pattern, and for `findAll` the maximum number of matches.
        arguments: Vec<Node>,
    },
    Call {
        function: &'static Function,
        arguments: Vec<Node>,
    },
}

/// A macro that iterates over a list or a map.
pub(super) struct Comprehension {
    pub role: Macro,
    /// Whether it has two variables: index or key, and value.
    pub two: bool,
    pub range: Node,
    /// Skips elements for which it is false.
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
    /// The direct children.
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

    /// The variable and the fields that lead to this node. `None` if anything else does.
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
