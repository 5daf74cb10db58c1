//! Quantities, as in `resource.Quantity` of Kubernetes.

use std::cmp::Ordering;
use std::str::FromStr as _;
use std::sync::Arc;

use bigdecimal::{BigDecimal, RoundingMode, ToPrimitive as _, num_bigint::BigInt};

use super::{Work, arguments};
use crate::value::Value;
use crate::work::Fault;

/// Maximum length of a quantity's text, and maximum exponent. Kubernetes accepts larger ones, slowly.
const LONGEST: usize = 64;
const LARGEST_EXPONENT: i64 = 64;
const STEPS: u64 = 40;

#[derive(Debug)]
pub(crate) struct Quantity {
    amount: BigDecimal,
    /// Number of decimal places, if Kubernetes stores the quantity as a 64-bit integer.
    places: Option<i64>,
}

impl Quantity {
    pub fn order(&self, other: &Self) -> Ordering {
        self.amount.cmp(&other.amount)
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > LONGEST {
            return None;
        }
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = unsigned.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // For Kubernetes, a number without digits is 0.
        if fraction.contains('.') {
            return None;
        }
        let (binary, exponent) = match suffix {
            "n" => (false, -9),
            "u" => (false, -6),
            "m" => (false, -3),
            "" => (false, 0),
            "k" => (false, 3),
            "M" => (false, 6),
            "G" => (false, 9),
            "T" => (false, 12),
            "P" => (false, 15),
            "E" => (false, 18),
            "Ki" => (true, 10),
            "Mi" => (true, 20),
            "Gi" => (true, 30),
            "Ti" => (true, 40),
            "Pi" => (true, 50),
            "Ei" => (true, 60),
            exponent => (false, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
        };
        if !(-LARGEST_EXPONENT..=LARGEST_EXPONENT).contains(&exponent) {
            return None;
        }
        let digits = format!("{}{fraction}", whole.trim_start_matches('0'));
        let digits = if digits.is_empty() { "0".to_owned() } else { digits };
        let integer = BigInt::from_str(&digits).ok()?;
        let integer = if text.starts_with('-') { -integer } else { integer };
        let places = fraction.len() as i64 - if binary { 0 } else { exponent };
        let integer = if binary { integer << exponent as u64 } else { integer };
        // Kubernetes stores short quantities as 64-bit integers. Only these can be integers for `isInteger()`.
        let whole_digits = whole.trim_start_matches('0').len().max(1) as i64;
        let spare_digits =
            if binary { 15 - whole_digits - exponent * 3 / 10 - 1 } else { 18 - whole_digits - fraction.len() as i64 };
        let whole_or_decimal = !binary || fraction.is_empty();
        let short = spare_digits >= 0 && places <= 9 && whole_or_decimal && integer.to_i64().is_some();
        let mut amount = BigDecimal::new(integer, places);
        if !short {
            amount = amount.with_scale_round(9, RoundingMode::Up);
            let most = BigDecimal::from(i64::MAX);
            if binary && amount.abs() > most {
                amount = if text.starts_with('-') { -most } else { most };
            }
        }
        Some(Self { amount, places: short.then_some(places) })
    }

    fn integer(&self) -> Option<i64> {
        self.places.filter(|places| *places <= 0)?;
        self.amount.to_i64()
    }

    fn plus(&self, other: &Self, sign: i64) -> Self {
        let amount = &self.amount + &other.amount * BigDecimal::from(sign);
        let zero = |quantity: &Self| quantity.amount == 0;
        let places = match (self.places, other.places) {
            (Some(places), Some(_)) if zero(other) => Some(places),
            (Some(_), Some(places)) if zero(self) => Some(places),
            (Some(left), Some(right)) => Some(left.max(right)),
            _ => None,
        };
        let fits = |places: &i64| amount.with_scale(*places).as_bigint_and_exponent().0.to_i64().is_some();
        let places = places.filter(fits);
        Self { amount, places }
    }
}

fn parse(work: &mut Work, args: &[Value]) -> Result<Option<Quantity>, Fault> {
    work.steps(STEPS)?;
    arguments!(args, [Value::String(text)] => Quantity::parse(text))
}

pub(super) fn quantity(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    parse(work, args)?.map(|quantity| Value::Quantity(Arc::new(quantity))).ok_or(Fault::Refused)
}

pub(super) fn is_quantity(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    parse(work, args).map(|quantity| Value::Bool(quantity.is_some()))
}

pub(super) fn sign(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Quantity(quantity)] => Value::Int(quantity.amount.cmp(&BigDecimal::from(0)) as i64))
}

pub(super) fn is_integer(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Quantity(quantity)] => Value::Bool(quantity.integer().is_some()))
}

pub(super) fn as_integer(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Quantity(quantity)] => Value::Int(quantity.integer().ok_or(Fault::Refused)?))
}

pub(super) fn as_approximate_float(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(STEPS)?;
    let [Value::Quantity(quantity)] = args else { return Err(Fault::Types) };
    let scaled = quantity.places.map_or_else(|| quantity.amount.clone(), |places| quantity.amount.with_scale(places));
    let (integer, places) = scaled.as_bigint_and_exponent();
    let base = integer.to_f64().unwrap_or(f64::NAN);
    Ok(Value::Double(if places == 0 { base } else { base * 10_f64.powi(-places as i32) }))
}

fn plus(work: &mut Work, args: &[Value], sign: i64) -> Result<Value, Fault> {
    work.steps(STEPS)?;
    arguments!(args,
        [Value::Quantity(left), Value::Quantity(right)] => Value::Quantity(Arc::new(left.plus(right, sign))),
        [Value::Quantity(left), Value::Int(right)] => {
            let right = Quantity { amount: BigDecimal::from(*right), places: Some(0) };
            Value::Quantity(Arc::new(left.plus(&right, sign)))
        }
    )
}

pub(super) fn add(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    plus(work, args, 1)
}

pub(super) fn sub(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    plus(work, args, -1)
}
