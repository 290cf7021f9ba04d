//! GELU with the error function, x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel, 2016), fast enough beside the products: the
//! library's own calls a scalar `erff` per number, a third of all time. On the `flex` device only; elsewhere the tensor
//! operation is used. It must not know what is activated.

use burn::tensor::activation::gelu;
use burn::tensor::{DType, Device, Tensor, TensorData};

/// The activation of all numbers; `None` if the device gave back something else than f32.
pub(super) fn gelu_of(rows: Tensor<2>) -> Option<Tensor<2>> {
    let (device, shape) = (rows.device(), rows.dims());
    if device != Device::flex() || rows.dtype() != DType::F32 {
        return Some(gelu(rows));
    }
    let mut numbers = rows.into_data().try_into_vec::<f32>().ok()?;
    activate(&mut numbers);
    let data = TensorData::new(numbers, shape);
    Some(Tensor::from_data(data, (&device, DType::F32)))
}

fn activate(numbers: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found the instructions that the function was compiled for.
        return unsafe { activate_wide(numbers) };
    }
    activate_each(numbers);
}

/// The same sums and products, eight at a time: no fused ones, so that the bits do not depend on the machine.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn activate_wide(numbers: &mut [f32]) {
    activate_each(numbers);
}

#[inline(always)]
fn activate_each(numbers: &mut [f32]) {
    for number in numbers {
        *number = 0.5 * *number * (1.0 + erf(*number * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// A ratio of polynomials in x^2 (the one of XLA's f32 `erf`), within 4e-7 everywhere.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let q = x * x;
    let over = 2.290_506_6e-4;
    let over = over * q + 3.408_291e-3;
    let over = over * q + 5.095_569_5e-2;
    let over = over * q + 1.852_083_2e-1;
    let over = over * q + std::f32::consts::FRAC_2_SQRT_PI;
    let under = -1.179_160_3e-7;
    let under = under * q + 2.354_796_6e-5;
    let under = under * q + 1.017_962_5e-3;
    let under = under * q + 1.407_047e-2;
    let under = under * q + 1.109_850_5e-1;
    let under = under * q + 4.974_692_5e-1;
    // From here on it is 1 in f32; what the ratio is short of it would count for large numbers.
    if x.abs() < 3.832_507 {
        x * over / (under * q + 1.0)
    } else {
        1.0_f32.copysign(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise: the values of the formula, and the same bits however many are computed at a time.
    #[test]
    fn known_values() {
        for (x, expected) in [
            (-40.0_f32, 0.0_f64),
            (-4.0, -0.000_126_684_967_332_5),
            (-1.0, -0.158_655_253_931_457),
            (-0.5, -0.154_268_769_362_993),
            (0.0, 0.0),
            (0.25, 0.149_676_581_420_731),
            (1.0, 0.841_344_746_068_543),
            (3.0, 2.995_950_305_905_11),
            (6.0, 5.999_999_994_080_474),
            (1e30, 1e30),
        ] {
            let mut numbers = [x; 19];
            activate(&mut numbers);
            let mut single = [x];
            activate_each(&mut single);
            assert!(
                numbers
                    .iter()
                    .all(|number| number.to_bits() == single[0].to_bits())
            );
            let apart = (f64::from(single[0]) - expected).abs();
            assert!(apart <= 2e-6_f64.max(1e-7 * expected.abs()), "{x}: {apart}");
        }
        let mut nan = [f32::NAN];
        activate(&mut nan);
        assert!(nan[0].is_nan());
    }
}
