use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use kube_cel::KubeCelExt;
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use kube_cel::cel::context::VariableResolver;
use kube_cel::cel::{Context, Value};

/// A function of the library that expressions may call.
pub(super) struct Function {
    /// As it is written, with its namespace.
    pub name: &'static str,
    pub form: Form,
    /// How many arguments it takes at least and at most, a receiver not among them.
    pub arguments: (usize, usize),
    pub work: Work,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `f(x)`
    Global,
    /// `x.f()`
    Method,
    /// Both.
    Either,
}

/// What a call costs at most.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// In proportion to its arguments' sizes.
    Linear,
    /// In proportion to the product of the first two arguments' sizes: each part of one is held against the other, or a
    /// replacement takes the place of each part.
    Product,
    /// In proportion to the square of the receiver's size.
    Square,
    /// In proportion to the number that it is given.
    Number,
    /// A format may ask for many digits.
    Digits,
}

macro_rules! functions {
    ($($form:ident $work:ident $least:literal..=$most:literal: $($name:literal)+;)+) => {
        &[$($(Function { name: $name, form: Form::$form, arguments: ($least, $most), work: Work::$work },)+)+]
    };
}

static FUNCTIONS: &[Function] = functions! {
    Global Linear 1..=1: "int" "uint" "double" "bytes" "timestamp" "duration" "quantity" "isQuantity" "url" "isURL" "isIP" "cidr"
        "isCIDR" "semver" "isSemver" "base64.encode" "base64.decode" "strings.quote" "math.ceil" "math.floor" "math.round"
        "math.trunc" "math.abs" "math.sign" "math.isInf" "math.isNaN" "math.isFinite" "math.bitNot" "math.sqrt" "ip.isCanonical";
    Global Linear 1..=8: "math.greatest" "math.least";
    Global Linear 2..=2: "math.bitAnd" "math.bitOr" "math.bitXor" "math.bitShiftLeft" "math.bitShiftRight";
    Global Product 2..=2: "sets.contains" "sets.equivalent" "sets.intersects";
    Global Number 1..=1: "lists.range";
    Either Linear 0..=0: "ip";
    Method Linear 0..=0: "getFullYear" "getMonth" "getDayOfYear" "getDayOfMonth" "getDate" "getDayOfWeek" "getHours"
        "getMinutes" "getSeconds" "getMilliseconds" "lowerAscii" "upperAscii" "trim" "isSorted" "min" "max" "sort" "reverse"
        "isInteger" "asInteger" "asApproximateFloat" "sign" "major" "minor" "patch" "family" "isLoopback" "isUnspecified"
        "isLinkLocalMulticast" "isLinkLocalUnicast" "isGlobalUnicast" "prefixLength" "masked" "getScheme" "getHost"
        "getHostname" "getPort" "getEscapedPath" "getQuery";
    Method Square 0..=0: "sum" "distinct";
    Method Linear 0..=1: "flatten";
    Method Linear 1..=1: "charAt" "isGreaterThan" "isLessThan" "compareTo" "add" "sub" "containsIP" "containsCIDR";
    Method Linear 1..=2: "substring" "split";
    Method Linear 2..=2: "slice";
    Method Product 1..=2: "indexOf" "lastIndexOf";
    Method Product 2..=3: "replace";
    Method Digits 1..=1: "format";
};

static BY_NAME: LazyLock<BTreeMap<&'static str, &'static Function>> =
    LazyLock::new(|| FUNCTIONS.iter().map(|function| (function.name, function)).collect());

static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

/// The function of that name, its namespace included.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    BY_NAME.get(name).copied()
}

/// Whether `name` is what functions' names begin with before a dot.
pub(super) fn is_namespace(name: &str) -> bool {
    FUNCTIONS.iter().any(|function| function.name.split_once('.').is_some_and(|(namespace, _)| namespace == name))
}

const ARGUMENTS: [&str; 9] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];

/// The library's own form of a call: its arguments are variables named by their index, a receiver first.
pub(super) fn call(function: &Function, receiver: bool, arguments: usize) -> IdedExpr {
    let variable = |index: usize| IdedExpr { id: 0, expr: Expr::Ident(ARGUMENTS[index].to_owned()) };
    let namespaced = function.name.split_once('.');
    let (target, name) = match namespaced {
        Some((namespace, name)) => (Some(IdedExpr { id: 0, expr: Expr::Ident(namespace.to_owned()) }), name),
        None => (receiver.then(|| variable(0)), function.name),
    };
    let first = usize::from(receiver && namespaced.is_none());
    IdedExpr {
        id: 0,
        expr: Expr::Call(CallExpr {
            func_name: name.to_owned(),
            target: target.map(Box::new),
            args: (first..arguments).map(variable).collect(),
        }),
    }
}

struct Arguments<'a>(&'a [Value]);

impl VariableResolver for Arguments<'_> {
    fn resolve(&self, variable: &str) -> Option<Value> {
        let index = ARGUMENTS.iter().position(|name| *name == variable)?;
        self.0.get(index).cloned()
    }
}

/// Calls the library. `None` where it refuses; its own message is not passed on, since it quotes arguments.
pub(super) fn invoke(call: &IdedExpr, arguments: &[Value]) -> Option<Value> {
    let arguments = Arguments(arguments);
    let mut context = LIBRARY.new_inner_scope();
    context.set_variable_resolver(&arguments);
    // The last guard: a panic in the library over some argument must cost this call, not the process.
    catch_unwind(AssertUnwindSafe(|| Value::resolve(call, &context))).ok()?.ok()
}

/// `string(value)`, where the library has a text for it.
pub(super) fn text(value: &Value) -> Option<Value> {
    static CALL: LazyLock<IdedExpr> = LazyLock::new(|| {
        let string = Function { name: "string", form: Form::Either, arguments: (0, 0), work: Work::Linear };
        call(&string, false, 1)
    });
    invoke(&CALL, std::slice::from_ref(value))
}
