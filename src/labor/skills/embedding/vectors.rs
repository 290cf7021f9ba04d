//! The bytes of one unit: which model, then the vectors. Written by the runner, read and compared by anyone; plain Rust. It must
//! not know texts.
//!
//! ```text
//! 0      version, 1          2..4   zeros                8..40  SHA-256 of the model
//! 1      1 if normalized     4..8   dim, u32             40..   vectors, f32; little-endian all
//! ```
//! The vectors of a unit with fewer texts than the others are followed by zeros.

/// Bytes before the vectors.
pub const HEADER_BYTES: usize = 40;
/// The distance up to which two vectors agree, as a part of the longer one's length. Honest f32 differs by some 1e-6; the same
/// model in eight bits by some 1e-2.
pub const TOLERANCE: f64 = 1e-4;
/// How far a normalized vector's length may be from 1.
const LENGTH_TOLERANCE: f64 = 1e-3;
const VERSION: u8 = 1;

/// What a unit says of its vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The model's hash.
    pub model: [u8; 32],
    /// Numbers in a vector, at least one.
    pub dim: u32,
    /// Whether vectors have length 1.
    pub normalized: bool,
}

impl Header {
    /// The header of a unit's bytes; `None` if they are no unit.
    pub fn of(unit: &[u8]) -> Option<Self> {
        let (head, _) = unit.split_first_chunk::<HEADER_BYTES>()?;
        let (fixed, model) = head.split_first_chunk::<8>()?;
        let [VERSION, normalized @ (0 | 1), 0, 0, a, b, c, d] = *fixed else {
            return None;
        };
        let dim = u32::from_le_bytes([a, b, c, d]);
        (1..=super::MAX_DIM).contains(&dim).then_some(Self {
            model: model.try_into().ok()?,
            dim,
            normalized: normalized == 1,
        })
    }

    /// Bytes of one vector.
    pub fn row_bytes(&self) -> usize {
        4 * self.dim as usize
    }

    /// A unit of these vectors, padded to `slots` of them.
    #[cfg(any(test, feature = "labor"))]
    pub(crate) fn unit(&self, rows: &[Vec<f32>], slots: usize) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.normalized), 0, 0];
        bytes.extend(self.dim.to_le_bytes());
        bytes.extend(self.model);
        bytes.extend(
            rows.iter()
                .flatten()
                .flat_map(|number| number.to_le_bytes()),
        );
        bytes.resize(HEADER_BYTES + slots * self.row_bytes(), 0);
        bytes
    }
}

/// The `used` vectors of a unit of `slots`, as bytes; `None` unless the unit has this header and length, its numbers are finite,
/// normalized vectors have length 1, and what follows the vectors is zero.
pub fn rows<'a>(
    unit: &'a [u8],
    header: &Header,
    used: usize,
    slots: usize,
) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
    let row_bytes = header.row_bytes();
    let body = unit.get(HEADER_BYTES..)?;
    if Header::of(unit)? != *header || Some(body.len()) != row_bytes.checked_mul(slots) {
        return None;
    }
    let (vectors, padding) = body.split_at_checked(row_bytes.checked_mul(used)?)?;
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    let sane = |row: &[u8]| {
        let squares: f64 = numbers(row).map(|number| number * number).sum();
        squares.is_finite()
            && (!header.normalized || (squares.sqrt() - 1.0).abs() <= LENGTH_TOLERANCE)
    };
    vectors
        .chunks_exact(row_bytes)
        .all(sane)
        .then(|| vectors.chunks_exact(row_bytes))
}

/// Whether two units hold the same vectors of the same model, up to [`TOLERANCE`].
pub fn agree(a: &[u8], b: &[u8]) -> bool {
    let (Some(header), Some(other)) = (Header::of(a), Header::of(b)) else {
        return false;
    };
    let row_bytes = header.row_bytes();
    let (Some(of_a), Some(of_b)) = (a.get(HEADER_BYTES..), b.get(HEADER_BYTES..)) else {
        return false;
    };
    let whole = !of_a.is_empty() && of_a.len().is_multiple_of(row_bytes);
    let rows = of_a
        .chunks_exact(row_bytes)
        .zip(of_b.chunks_exact(row_bytes));
    header == other && of_a.len() == of_b.len() && whole && rows.clone().all(|(a, b)| close(a, b))
}

fn close(a: &[u8], b: &[u8]) -> bool {
    let (mut of_a, mut of_b, mut apart) = (0.0, 0.0, 0.0);
    for (x, y) in numbers(a).zip(numbers(b)) {
        of_a += x * x;
        of_b += y * y;
        apart += (x - y) * (x - y);
    }
    // NaN fails the comparison, and an infinite length is none.
    apart.is_finite() && apart.sqrt() <= TOLERANCE * f64::max(of_a, of_b).sqrt()
}

fn numbers(row: &[u8]) -> impl Iterator<Item = f64> {
    let (words, _) = row.as_chunks::<4>();
    words
        .iter()
        .map(|word| f64::from(f32::from_le_bytes(*word)))
}
