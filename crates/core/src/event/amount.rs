//! Exact amounts: usage figures, limits and thresholds are compared as the decimals in which they are written, never as
//! floats.
//!
//! Input is bounded: a text has at most [`MAX_TEXT`] characters, and its value fits into a double. So no input makes
//! the arithmetic slow.

use std::{fmt, str::FromStr};

use bigdecimal::{
    BigDecimal, RoundingMode, Zero,
    num_bigint::{BigInt, Sign},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The maximum length of a text: enough for a double written out in full.
pub const MAX_TEXT: usize = 400;
/// The maximum absolute exponent of ten. The exponents of doubles end at 308 and -324.
const MAX_EXPONENT: i64 = 400;
/// The number of decimals of a percentage, in thresholds and in payloads.
pub const PERCENT_DECIMALS: i64 = 3;

/// An exact decimal number. Equal numbers are equal however they were written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(BigDecimal);

/// The error for a text that is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not in a supported form.
    #[error("it is no number")]
    Form,
    /// `NaN`, `+Inf` or `-Inf`.
    #[error("it is not finite")]
    NotFinite,
    /// Longer than [`MAX_TEXT`], or too large for a double.
    #[error("it is larger than a double can hold")]
    TooLarge,
}

impl Amount {
    /// Parses a Kubernetes Quantity, such as `950M`, `64Gi`, `500m` or `1.5e9`.
    pub fn quantity(text: &str) -> Result<Self, AmountError> {
        let number = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
        let (number, suffix) = text.split_at(number);
        let decimal = |exponent: i64| Self::decimal(number, exponent);
        let binary = |power: u32| {
            let amount = Self::decimal(number, 0)?;
            Self::bounded(&(amount.0 * BigInt::from(1024).pow(power)))
        };
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(1),
            "Mi" => binary(2),
            "Gi" => binary(3),
            "Ti" => binary(4),
            "Pi" => binary(5),
            "Ei" => binary(6),
            _ => decimal(exponent(suffix)?),
        }
    }

    /// Parses a sample's value in Prometheus format, as the exact decimal that is written.
    pub fn sample(text: &str) -> Result<Self, AmountError> {
        if matches!(text, "NaN" | "Inf" | "+Inf" | "-Inf") {
            return Err(AmountError::NotFinite);
        }
        let number = text.find(['e', 'E']).unwrap_or(text.len());
        let (number, suffix) = text.split_at(number);
        Self::decimal(number, if suffix.is_empty() { 0 } else { exponent(suffix)? })
    }

    /// Parses a number such as `1.50` and multiplies it by a power of ten.
    fn decimal(number: &str, exponent: i64) -> Result<Self, AmountError> {
        if number.len() > MAX_TEXT {
            return Err(AmountError::TooLarge);
        }
        let (sign, unsigned) = match number.strip_prefix('-') {
            Some(unsigned) => (Sign::Minus, unsigned),
            None => (Sign::Plus, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(AmountError::Form);
        }
        let magnitude = BigInt::from_str(&digits).map_err(|_| AmountError::Form)?;
        let magnitude = if sign == Sign::Minus { -magnitude } else { magnitude };
        Self::bounded(&BigDecimal::new(magnitude, fraction.len() as i64 - exponent))
    }

    fn bounded(number: &BigDecimal) -> Result<Self, AmountError> {
        let amount = Self(number.normalized());
        if amount.to_f64().is_finite() { Ok(amount) } else { Err(AmountError::TooLarge) }
    }

    /// Returns the nearest double.
    #[must_use]
    pub fn to_f64(&self) -> f64 {
        let (digits, scale) = self.0.as_bigint_and_exponent();
        // The standard library's parser rounds correctly, whatever the number of digits.
        format!("{digits}e{}", -scale).parse().unwrap_or(f64::NAN)
    }

    /// Returns the double that ECMAScript reads: the nearest one, or infinity if the amount is larger than all doubles.
    /// Returns `None` beyond 2^53 if ECMAScript would print other digits, so that the receiver would get another
    /// amount.
    #[must_use]
    pub fn printed_double(&self) -> Option<f64> {
        const INTEGERS: f64 = 9_007_199_254_740_992.0;
        let double = self.to_f64();
        let printed = || Self::sample(ryu_js::Buffer::new().format_finite(double));
        (double.abs() < INTEGERS || !double.is_finite() || printed().as_ref() == Ok(self)).then_some(double)
    }

    /// Reports whether the amount is greater than zero.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        self.0.sign() == Sign::Plus
    }

    /// Returns `percent` percent of the amount.
    #[must_use]
    pub fn percent(&self, percent: &Self) -> Self {
        let (digits, scale) = (&self.0 * &percent.0).into_bigint_and_exponent();
        Self(BigDecimal::new(digits, scale + 2).normalized())
    }

    /// Returns the amount in percent of the limit, rounded down to [`PERCENT_DECIMALS`]. Thresholds have as many
    /// decimals, so the result is at least a threshold exactly if the threshold is reached. Returns `None` if the limit
    /// is not greater than zero.
    #[must_use]
    pub fn percent_of(&self, limit: &Self) -> Option<Self> {
        if !limit.is_positive() {
            return None;
        }
        let (value, value_scale) = self.0.as_bigint_and_exponent();
        let (limit, limit_scale) = limit.0.as_bigint_and_exponent();
        // value / limit = (value × 10^limit_scale) / (limit × 10^value_scale), times 100, with the decimals that are
        // kept.
        let power = limit_scale - value_scale + 2 + PERCENT_DECIMALS;
        let ten = |power: i64| BigInt::from(10).pow(power.unsigned_abs() as u32);
        let (dividend, divisor) = if power < 0 { (value, limit * ten(power)) } else { (value * ten(power), limit) };
        let quotient = &dividend / &divisor;
        let rounded_up = dividend.sign() == Sign::Minus && !(&dividend % &divisor).is_zero();
        let floor = if rounded_up { quotient - 1 } else { quotient };
        Some(Self(BigDecimal::new(floor, PERCENT_DECIMALS).normalized()))
    }

    /// Subtracts the other amount.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self((&self.0 - &other.0).normalized())
    }
}

/// Parses a power of ten, such as `e9` or `E-3`.
fn exponent(suffix: &str) -> Result<i64, AmountError> {
    let power = suffix.strip_prefix(['e', 'E']).ok_or(AmountError::Form)?;
    let power: i64 = power.parse().map_err(|_| AmountError::Form)?;
    if power.abs() <= MAX_EXPONENT { Ok(power) } else { Err(AmountError::TooLarge) }
}

impl Default for Amount {
    fn default() -> Self {
        Self(BigDecimal::zero())
    }
}

/// Writes the amount in full, such as `950000000` or `0.5`, or with an exponent if that would be longer than 40
/// characters.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (digits, scale) = self.0.as_bigint_and_exponent();
        if scale.abs() > 38 {
            return write!(f, "{digits}e{}", -scale);
        }
        f.write_str(&self.0.with_scale_round(scale.max(0), RoundingMode::Floor).to_plain_string())
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::sample(&text).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

/// A threshold or a hysteresis, as a spec writes it: a percentage of the limit, or an amount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Level {
    text: String,
    amount: Amount,
    is_percent: bool,
}

impl Level {
    /// Parses a percentage such as `80%`, or a Quantity such as `950M`.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let percent = text.strip_suffix('%');
        let amount = percent.map_or_else(|| Amount::quantity(text), |number| Amount::decimal(number, 0))?;
        Ok(Self { text: text.to_owned(), amount, is_percent: percent.is_some() })
    }

    /// Returns the text of the spec.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns a name that is the same for all spellings: `50%` for `50.0%`, `1000000000` for `1G` and `1000M`. An
    /// amount and a percentage have different names even if the limit makes them equal.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}{}", self.amount, if self.is_percent { "%" } else { "" })
    }

    #[must_use]
    pub const fn is_percent(&self) -> bool {
        self.is_percent
    }

    /// Returns the amount. A percentage refers to `whole`; returns `None` for a percentage if `whole` is `None`.
    #[must_use]
    pub fn of(&self, whole: Option<&Amount>) -> Option<Amount> {
        if self.is_percent { whole.map(|whole| whole.percent(&self.amount)) } else { Some(self.amount.clone()) }
    }
}

impl From<Level> for String {
    fn from(level: Level) -> Self {
        level.text
    }
}

impl TryFrom<String> for Level {
    type Error = AmountError;

    fn try_from(text: String) -> Result<Self, AmountError> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Amount {
        Amount::quantity(text).unwrap()
    }

    #[test]
    fn quantities_are_read_with_every_suffix_that_kubernetes_has() {
        for (text, plain) in [
            ("0", "0"),
            ("-0", "0"),
            ("+5", "5"),
            ("007", "7"),
            (".5", "0.5"),
            ("5.", "5"),
            ("1.50", "1.5"),
            ("1n", "0.000000001"),
            ("1u", "0.000001"),
            ("500m", "0.5"),
            ("1k", "1000"),
            ("950M", "950000000"),
            ("1G", "1000000000"),
            ("1T", "1000000000000"),
            ("1P", "1000000000000000"),
            ("1E", "1000000000000000000"),
            ("1E3", "1000"),
            ("1e-3", "0.001"),
            ("12e6", "12000000"),
            ("1Ki", "1024"),
            ("1.5Mi", "1572864"),
            ("64Gi", "68719476736"),
            ("1Ti", "1099511627776"),
            ("1Pi", "1125899906842624"),
            ("1Ei", "1152921504606846976"),
        ] {
            assert_eq!(quantity(text).to_string(), plain, "{text}");
        }
        for text in ["", "G", ".", "1 G", "1g", "1Kib", "1e", "1e+", "1e1.5", "--1", "1.2.3", "0x10", "NaN", "1%", "１"]
        {
            assert_eq!(Amount::quantity(text), Err(AmountError::Form), "{text}");
        }
        assert_eq!(quantity("1G"), quantity("1000M"));
    }

    #[test]
    fn samples_are_exact_decimals_and_must_be_finite() {
        for (text, plain) in [
            ("0.1", "0.1"),
            ("1e+21", "1000000000000000000000"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e+308", "17976931348623157e292"),
            ("-3.25", "-3.25"),
            ("9007199254740993", "9007199254740993"),
        ] {
            assert_eq!(Amount::sample(text).unwrap().to_string(), plain, "{text}");
        }
        for text in ["NaN", "+Inf", "-Inf", "Inf"] {
            assert_eq!(Amount::sample(text), Err(AmountError::NotFinite), "{text}");
        }
        for text in ["", "1G", "nan", "1e", "e5", "0x1p-2"] {
            assert_eq!(Amount::sample(text), Err(AmountError::Form), "{text}");
        }
    }

    #[test]
    fn what_no_double_can_hold_is_refused_whatever_its_length() {
        let long = "9".repeat(1_000_000);
        for text in [
            "1e309",
            "-1e309",
            "1e400",
            "1e99999",
            "1e-99999",
            &long,
            &format!("0.{long}"),
            &format!("{}Ei", &long[..300]),
        ] {
            assert_eq!(Amount::quantity(text), Err(AmountError::TooLarge), "{}", &text[..text.len().min(20)]);
        }
        assert!(Amount::sample(&"9".repeat(308)).is_ok());
    }

    #[test]
    fn the_nearest_double_is_told() {
        for (text, number) in
            [("0.1", 0.1), ("9007199254740993", 9_007_199_254_740_992.0), ("5e-324", 5e-324), ("1G", 1e9)]
        {
            assert_eq!(quantity(text).to_f64().to_bits(), f64::to_bits(number), "{text}");
        }
    }

    #[test]
    fn percentages_are_rounded_down() {
        let percent = |value, limit| quantity(value).percent_of(&quantity(limit)).map(|percent| percent.to_string());
        assert_eq!(percent("799999999", "1G").as_deref(), Some("79.999"));
        assert_eq!(percent("8e8", "1G").as_deref(), Some("80"));
        assert_eq!(percent("1", "3").as_deref(), Some("33.333"));
        assert_eq!(percent("-1", "3").as_deref(), Some("-33.334"));
        assert_eq!(percent("3Gi", "64Mi").as_deref(), Some("4800"));
        assert_eq!(percent("5", "0"), None);
        assert_eq!(percent("5", "-1"), None);
    }

    #[test]
    fn a_level_has_one_name_however_it_is_spelled() {
        let name = |text| Level::parse(text).unwrap().name();
        assert_eq!([name("50%"), name("50.0%"), name("050%")], ["50%"; 3]);
        assert_eq!([name("1G"), name("1000M"), name("1e9"), name("1000000000")], ["1000000000"; 4]);
        assert_ne!(name("50"), name("50%"));
        assert_eq!(Level::parse("50.0%").unwrap().text(), "50.0%");
        for text in ["", "%", "5k%", "1e1%", "five"] {
            assert!(Level::parse(text).is_err(), "{text}");
        }
        let limit = quantity("1G");
        assert_eq!(Level::parse("99.5%").unwrap().of(Some(&limit)), Some(quantity("995M")));
        assert_eq!(Level::parse("5%").unwrap().of(None), None);
        assert_eq!(Level::parse("5M").unwrap().of(None), Some(quantity("5M")));
    }

    proptest! {
        #[test]
        fn amounts_compare_as_the_integers_that_they_are_multiples_of(
            a in any::<i64>(), b in any::<i64>(), scale in 0..9_u32,
        ) {
            let amount = |digits: i64| Amount::sample(&format!("{digits}e-{scale}")).unwrap();
            prop_assert_eq!(amount(a).cmp(&amount(b)), a.cmp(&b));
            prop_assert_eq!(amount(a) == amount(b), a == b);
            let difference = i128::from(a) - i128::from(b);
            prop_assert_eq!(amount(a).minus(&amount(b)), Amount::sample(&format!("{difference}e-{scale}")).unwrap());
        }

        #[test]
        fn a_percentage_is_told_reached_exactly_where_it_is(
            value in 0..10_000_000_000_i64, limit in 1..10_000_000_000_i64, thousandths in 1..999_999_i64,
        ) {
            let (value_of, limit_of) = (quantity(&value.to_string()), quantity(&limit.to_string()));
            let threshold = Level::parse(&format!("{}.{:03}%", thousandths / 1000, thousandths % 1000)).unwrap();
            let reached = value_of >= threshold.of(Some(&limit_of)).unwrap();
            prop_assert_eq!(reached, i128::from(value) * 100_000 >= i128::from(thousandths) * i128::from(limit));
            let percent = value_of.percent_of(&limit_of).unwrap();
            prop_assert_eq!(reached, percent >= Amount::sample(&format!("{thousandths}e-3")).unwrap());
        }

        #[test]
        fn a_double_keeps_its_value_through_its_text(number in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            let amount = Amount::sample(&format!("{number:e}")).unwrap();
            prop_assert_eq!(amount.to_f64().to_bits(), number.to_bits());
            prop_assert_eq!(Amount::sample(&amount.to_string()).unwrap(), amount);
        }

        #[test]
        fn no_text_panics(text in "[-+]?[0-9.]{0,12}[a-zA-Z%]{0,3}[-+0-9]{0,5}") {
            let _ = (Amount::quantity(&text), Amount::sample(&text), Level::parse(&text));
        }
    }
}
