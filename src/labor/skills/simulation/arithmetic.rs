//! Arithmetic that must give the same bits on every machine: the aggregate is compared byte for byte, so it may use only what
//! IEEE 754 defines exactly (`+ - * / sqrt`), never the C library's `exp`. It knows no options.

use serde_json::Value;

/// `e^x` from exactly defined operations alone; relative error below 1e-13 for |x| <= 100.
pub(crate) fn exp(x: f64) -> f64 {
    if x < 0.0 {
        // Below zero the squarings would cancel.
        return 1.0 / exp(-x);
    }
    // Halve until the series converges fast, then square back; each squaring doubles the relative error.
    let mut halvings = 0_u32;
    let mut reduced = x;
    while reduced > 0.125 && halvings < 64 {
        reduced *= 0.5;
        halvings += 1;
    }
    // Working on `e^x - 1` keeps the low bits through the squarings: (1 + m)^2 - 1 = m (2 + m).
    let mut minus_one = 0.0;
    for term in (1..=12).rev() {
        minus_one = (1.0 + minus_one) * reduced / f64::from(term);
    }
    for _ in 0..halvings {
        minus_one *= 2.0 + minus_one;
    }
    1.0 + minus_one
}

/// Rounded to 12 significant digits and to 1e-15, so that any JSON reader gives back the same number.
pub(crate) fn to_twelve_digits(number: f64) -> f64 {
    if !number.is_finite() {
        return number;
    }
    let text = if number.abs() < 1e-3 {
        format!("{number:.15}")
    } else {
        format!("{number:.11e}")
    };
    text.parse().map_or(number, |rounded: f64| rounded + 0.0)
}

/// A JSON number with one spelling: whole numbers without a fraction, as RFC 8785 writes them.
pub(crate) fn to_json_number(number: f64) -> Value {
    const SAFE: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < SAFE {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise: close to the C library everywhere, though not by it.
    #[test]
    fn exp_is_accurate() {
        for step in -5000..=5000 {
            let x = f64::from(step) * 0.02;
            let error = (exp(x) / x.exp() - 1.0).abs();
            assert!(error < 1e-13, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0).to_bits(), 1.0_f64.to_bits());
    }

    /// The promise: rounded results survive serde_json's fast reader.
    #[test]
    fn twelve_digits_roundtrip() -> Result<(), serde_json::Error> {
        let mut x = 1.234_567_890_123_456_7e-9;
        while x < 1e14 {
            let rounded = to_twelve_digits(x);
            let back: f64 = serde_json::from_str(&serde_json::to_string(&rounded)?)?;
            assert_eq!(back.to_bits(), rounded.to_bits());
            assert!((rounded - x).abs() <= (x * 1e-11).max(1e-15));
            x *= 1.37;
        }
        Ok(())
    }
}
