//! The tensors of a safetensors file, read one by one and never mapped or held twice: header first, then each tensor from its
//! own place. F32, F16 and BF16 become f32. It must not know what the tensors are for.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::labor::LaborError;

/// The largest header that is read; the format's own limit is 100 MB, an encoder needs some 20 KB.
const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Read at once while converting.
const CHUNK_BYTES: usize = 1 << 20;

/// What exporters put before every name.
const PREFIXES: [&str; 3] = ["", "bert.", "0.auto_model."];

/// An open safetensors file.
pub(crate) struct Weights {
    path: PathBuf,
    file: File,
    data_at: u64,
    header: Metadata,
    prefix: &'static str,
}

impl Weights {
    /// Opens a file and checks its header against its length.
    ///
    /// # Errors
    /// `model_invalid`.
    pub(crate) fn open(path: &Path) -> Result<Self, LaborError> {
        let bad = |reason: String| LaborError::ModelInvalid {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(|error| bad(error.to_string()))?;
        let length = file
            .metadata()
            .map_err(|error| bad(error.to_string()))?
            .len();
        let mut size = [0; 8];
        file.read_exact(&mut size)
            .map_err(|error| bad(error.to_string()))?;
        let header_bytes = u64::from_le_bytes(size);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "a header of {header_bytes} bytes is too large"
            )));
        }
        let mut header = Vec::new();
        (&mut file)
            .take(header_bytes)
            .read_to_end(&mut header)
            .map_err(|error| bad(error.to_string()))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
        let data_at = 8 + header_bytes;
        if data_at.checked_add(header.data_len() as u64) != Some(length) {
            return Err(bad(
                "it is cut off, or longer than its header says".to_owned()
            ));
        }
        let known = |prefix: &&str| {
            let name = format!("{prefix}embeddings.word_embeddings.weight");
            header.info(&name).is_some()
        };
        let prefix = PREFIXES.into_iter().find(known).unwrap_or("");
        Ok(Self {
            path: path.to_owned(),
            file,
            data_at,
            header,
            prefix,
        })
    }

    /// Whether a tensor is there with this shape, in a type that can be read.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), LaborError> {
        self.find(name, shape).map(|_| ())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&TensorInfo, usize), LaborError> {
        let full = format!("{}{name}", self.prefix);
        let info = self.header.info(&full);
        let info = info.ok_or_else(|| self.bad(format!("the tensor `{full}` is missing")))?;
        let size = match info.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => {
                let what = format!("`{full}` is {other:?}; F32, F16 and BF16 are supported");
                return Err(self.bad(what));
            }
        };
        if info.shape != shape {
            let what = format!("`{full}` has shape {:?} instead of {shape:?}", info.shape);
            return Err(self.bad(what));
        }
        let (start, end) = info.data_offsets;
        let count = shape.iter().product::<usize>();
        if end.checked_sub(start) != Some(count * size) || end > self.header.data_len() {
            return Err(self.bad(format!("`{full}` does not lie where its header says")));
        }
        Ok((info, count))
    }

    /// A tensor's numbers in row order.
    ///
    /// # Errors
    /// `model_invalid`; also for numbers that are not finite.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LaborError> {
        let (info, count) = self.find(name, shape)?;
        let mut numbers = Vec::with_capacity(count);
        let (mut at, end) = info.data_offsets;
        let mut chunk = vec![0; CHUNK_BYTES.min(end - at)];
        while at < end {
            chunk.truncate(end - at);
            self.file
                .read_exact_at(&mut chunk, self.data_at + at as u64)
                .map_err(|error| self.bad(error.to_string()))?;
            at += chunk.len();
            match info.dtype {
                Dtype::F32 => {
                    numbers.extend(chunk.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
                }
                Dtype::BF16 => numbers.extend(chunk.as_chunks().0.iter().map(|b| bf16(*b))),
                _ => numbers.extend(chunk.as_chunks().0.iter().map(|b| f16(*b))),
            }
        }
        if numbers.iter().all(|number| number.is_finite()) {
            Ok(numbers)
        } else {
            Err(self.bad(format!("`{name}` holds numbers that are not finite")))
        }
    }

    fn bad(&self, reason: String) -> LaborError {
        LaborError::ModelInvalid {
            path: self.path.clone(),
            reason,
        }
    }
}

/// The upper half of an f32.
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// IEEE 754 binary16: every one of its numbers is an f32.
fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, exponent, fraction) = ((bits & 0x8000) << 16, (bits >> 10) & 0x1f, bits & 0x3ff);
    match exponent {
        // Subnormal: a multiple of 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * (1.0 / 16_777_216.0)).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn write(header: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    /// The promise: halves become the same numbers as floats, the smallest and the largest too.
    #[test]
    fn halves_are_exact() {
        for (bits, number) in [
            (0x0000_u16, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(f16(bits.to_le_bytes()), number, "{bits:#06x}");
        }
        assert!(f16(0x7c00_u16.to_le_bytes()).is_infinite());
        assert!(f16(0x7e00_u16.to_le_bytes()).is_nan());
        assert_eq!(bf16(0x3f80_u16.to_le_bytes()), 1.0);
        assert_eq!(bf16(0xc049_u16.to_le_bytes()), -3.140_625);
    }

    /// The promise: the three types are read, under any of the known prefixes.
    #[test]
    fn three_types() {
        let mut data = 1.5_f32.to_le_bytes().to_vec();
        data.extend((-2.0_f32).to_le_bytes());
        data.extend(0x3c00_u16.to_le_bytes());
        data.extend(0x3f80_u16.to_le_bytes());
        let header = r#"{"bert.embeddings.word_embeddings.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
            "bert.half":{"dtype":"F16","shape":[1],"data_offsets":[8,10]},"bert.brain":{"dtype":"BF16","shape":[1],"data_offsets":[10,12]}}"#;
        let file = write(header, &data);
        let weights = Weights::open(file.path()).unwrap();
        let words = weights.read("embeddings.word_embeddings.weight", &[1, 2]);
        assert_eq!(words.unwrap(), [1.5, -2.0]);
        assert_eq!(weights.read("half", &[1]).unwrap(), [1.0]);
        assert_eq!(weights.read("brain", &[1]).unwrap(), [1.0]);
        assert!(
            weights
                .check("half", &[2])
                .unwrap_err()
                .to_string()
                .contains("shape")
        );
        assert!(
            weights
                .check("other", &[1])
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
    }

    /// The promise: a file that lies about itself is refused by code, and nothing is allocated for the lie.
    #[test]
    fn lies_are_refused() {
        let tensor = |offsets: &str, shape: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cut = write(&tensor("[0,8]", "[2]"), &[0; 4]);
        let long = write(&tensor("[0,8]", "[2]"), &[0; 12]);
        let huge = write(&tensor("[0,4000000000]", "[1000000000]"), &[0; 8]);
        let garbage = write("no json", &[]);
        for file in [&cut, &long, &huge, &garbage] {
            let error = Weights::open(file.path()).err().unwrap();
            assert_eq!(error.code(), "model_invalid");
        }
        let misfit = write(&tensor("[0,8]", "[3]"), &[0; 8]);
        let refused = Weights::open(misfit.path()).and_then(|w| w.read("a", &[3]));
        assert_eq!(refused.unwrap_err().code(), "model_invalid");
        let nan = write(&tensor("[0,4]", "[1]"), &f32::NAN.to_le_bytes());
        let refused = Weights::open(nan.path()).and_then(|w| w.read("a", &[1]));
        assert!(refused.unwrap_err().to_string().contains("finite"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), u64::MAX.to_le_bytes()).unwrap();
        assert_eq!(
            Weights::open(file.path()).err().unwrap().code(),
            "model_invalid"
        );
    }
}
