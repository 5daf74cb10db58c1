//! The functions that expressions may call: those of the apiserver's CEL environment, within bounds of ours.

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
    Method Square 0..=0: "distinct";
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
    // The last guard: a panic in the library over some argument must cost this call, not the process.
    catch_unwind(AssertUnwindSafe(|| resolve(call, arguments))).ok()?
}

fn resolve(call: &IdedExpr, arguments: &[Value]) -> Option<Value> {
    let arguments = Arguments(arguments);
    let mut context = LIBRARY.new_inner_scope();
    context.set_variable_resolver(&arguments);
    Value::resolve(call, &context).ok()
}

/// `string(value)`, where the library has a text for it.
pub(super) fn text(value: &Value) -> Option<Value> {
    static CALL: LazyLock<IdedExpr> = LazyLock::new(|| {
        let string = Function { name: "string", form: Form::Either, arguments: (0, 0), work: Work::Linear };
        call(&string, false, 1)
    });
    invoke(&CALL, std::slice::from_ref(value))
}

/// The names of all functions of one form.
#[cfg(test)]
pub(super) fn names(form: Form) -> Vec<&'static str> {
    FUNCTIONS.iter().filter(|function| function.form == form).map(|function| function.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values at which arithmetic, parsing and slicing go wrong first.
    fn awkward() -> Vec<Value> {
        let texts = [
            "",
            "a",
            "äö",
            "1",
            "-1",
            "1.5e400",
            "9999999999999999999h",
            "-9223372036854775808ns",
            "106751991167300d",
            "1h",
            "h",
            ".h",
            "2025-11-08T14:00:00Z",
            "9999-12-31T23:59:59+23:59",
            "0001-01-01T00:00:00-23:59",
            "1Gi",
            "9e99999",
            "1e-99999",
            "%",
            "%s",
            "%d",
            "%.99f",
            "%x",
            "%%%",
            "1.2.3",
            "18446744073709551616.0.0",
            "10.0.0.1",
            "::1",
            "10.0.0.0/33",
            "::/128",
            "https://[::1]:99999/",
            "YQ==",
            "Y",
        ];
        let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
        values.extend([i64::MIN, -1, 0, 1, 63, 64, 70].map(Value::Int));
        values.extend([0, 1, u64::MAX].map(Value::UInt));
        values.extend([f64::NAN, f64::INFINITY, f64::MIN, -0.5, 0.0, 1e19].map(Value::Float));
        values.extend([Value::Null, Value::Bool(true), Value::from(b"\xff".to_vec())]);
        values.push(Value::from(Vec::<Value>::new()));
        values.push(Value::from(vec![i64::MAX, i64::MAX]));
        values.push(Value::from(vec!["b", "a"]));
        for (function, text) in [
            ("duration", "1h"),
            ("timestamp", "9999-12-31T23:59:59Z"),
            ("quantity", "1Gi"),
            ("semver", "1.2.3"),
            ("cidr", "10.0.0.0/8"),
        ] {
            values.extend(find(function).and_then(|function| resolve(&call(function, false, 1), &[text.into()])));
        }
        values
    }

    #[test]
    fn no_function_panics_over_any_arguments() {
        let values = awkward();
        for function in FUNCTIONS {
            let receivers = usize::from(function.form != Form::Global);
            for count in function.arguments.0 + receivers..=(function.arguments.1 + receivers).min(3) {
                for index in 0..values.len().pow(count.min(2) as u32) {
                    let third = &values[index % 7];
                    let arguments =
                        [&values[index % values.len()], &values[index / values.len() % values.len()], third];
                    let arguments: Vec<Value> = arguments.into_iter().take(count).cloned().collect();
                    let call = call(function, receivers == 1, count);
                    let outcome = catch_unwind(AssertUnwindSafe(|| resolve(&call, &arguments)));
                    assert!(outcome.is_ok(), "{} of {arguments:?}", function.name);
                }
            }
        }
    }

    #[test]
    fn each_function_of_the_table_is_in_the_library() {
        let context = Context::default().with_all();
        for function in FUNCTIONS {
            let arguments = function.arguments.0 + usize::from(function.form != Form::Global);
            let call = call(function, function.form != Form::Global, arguments);
            let error = Value::resolve(&call, &context).unwrap_err();
            let unknown =
                kube_cel::cel::ExecutionError::undeclared_reference(function.name.rsplit('.').next().unwrap());
            assert_ne!(error, unknown, "{}", function.name);
        }
    }
}
