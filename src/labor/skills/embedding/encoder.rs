//! A BERT encoder (Devlin et al., 2018) on Burn tensors, weights in f32. Texts of a batch are packed: all their tokens are rows
//! of one matrix, and attention runs over groups of equally long texts. So there is no padding, hence no mask, and a text's
//! vector depends on its own tokens alone. It must not know text, units or where the model came from.

use std::path::Path;

use burn::tensor::activation::{gelu_approximate, relu};
use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::gelu::gelu_of;
use crate::labor::LaborError;
use crate::labor::models::directory::{Activation, Description, Pooling};
use crate::labor::models::weights::Weights;

struct Linear {
    /// `[in, out]`; the file has `[out, in]`.
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Linear {
    fn of(&self, rows: Tensor<2>) -> Tensor<2> {
        linear(rows, self.weight.clone(), Some(self.bias.clone()))
    }
}

struct Norm {
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
}

impl Norm {
    fn of(&self, rows: Tensor<2>) -> Tensor<2> {
        let beta = Some(self.beta.clone());
        layer_norm(rows, self.gamma.clone(), beta, self.epsilon)
    }
}

struct Layer {
    /// Query, key and value side by side: one product instead of three.
    attend: Linear,
    attended: Linear,
    attended_norm: Norm,
    widen: Linear,
    narrow: Linear,
    norm: Norm,
}

/// An encoder with its weights on one device.
pub(super) struct Encoder {
    device: Device,
    words: Tensor<2>,
    /// Positions, with the first token type added: a single text has no other.
    positions: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    hidden: usize,
    activation: Activation,
}

/// Tensors by name, from the file to the device.
struct Loader<'a> {
    weights: Weights,
    device: &'a Device,
    epsilon: f64,
}

impl Loader<'_> {
    fn one(&self, numbers: Vec<f32>) -> Tensor<1> {
        let shape = [numbers.len()];
        Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32))
    }

    fn two(&self, numbers: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32))
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, LaborError> {
        let name = format!("embeddings.{name}_embeddings.weight");
        Ok(self.two(self.weights.read(&name, &shape)?, shape))
    }

    /// The named parts, one below the other in the file's layout.
    fn linear(&self, names: &[String], out: usize, from: usize) -> Result<Linear, LaborError> {
        let all = out * names.len();
        let (mut weight, mut bias) = (vec![0.0; from * all], Vec::new());
        for (part, name) in names.iter().enumerate() {
            let rows = self.weights.read(&format!("{name}.weight"), &[out, from])?;
            // Turned once here instead of in every product.
            for (column, row) in rows.chunks_exact(from).enumerate() {
                let places = weight.iter_mut().skip(part * out + column).step_by(all);
                places.zip(row).for_each(|(to, number)| *to = *number);
            }
            bias.extend(self.weights.read(&format!("{name}.bias"), &[out])?);
        }
        Ok(Linear {
            weight: self.two(weight, [from, all]),
            bias: self.one(bias),
        })
    }

    fn norm(&self, name: &str, size: usize) -> Result<Norm, LaborError> {
        Ok(Norm {
            gamma: self.one(self.weights.read(&format!("{name}.weight"), &[size])?),
            beta: self.one(self.weights.read(&format!("{name}.bias"), &[size])?),
            epsilon: self.epsilon,
        })
    }

    fn layer(&self, number: usize, of: &Description) -> Result<Layer, LaborError> {
        let at = |part: &str| format!("encoder.layer.{number}.{part}");
        let (hidden, wide) = (of.hidden, of.intermediate);
        let three = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        Ok(Layer {
            attend: self.linear(&three, hidden, hidden)?,
            attended: self.linear(&[at("attention.output.dense")], hidden, hidden)?,
            attended_norm: self.norm(&at("attention.output.LayerNorm"), hidden)?,
            widen: self.linear(&[at("intermediate.dense")], wide, hidden)?,
            narrow: self.linear(&[at("output.dense")], hidden, wide)?,
            norm: self.norm(&at("output.LayerNorm"), hidden)?,
        })
    }
}

impl Encoder {
    /// Reads the weights of a described model.
    pub(super) fn load(of: &Description, dir: &Path, device: &Device) -> Result<Self, LaborError> {
        let loader = Loader {
            weights: Weights::open(&dir.join("model.safetensors"))?,
            device,
            epsilon: of.norm_epsilon,
        };
        let types = loader.table("token_type", [of.token_types, of.hidden])?;
        let positions = loader.table("position", [of.positions, of.hidden])?;
        let layers = (0..of.layers).map(|number| loader.layer(number, of));
        Ok(Self {
            words: loader.table("word", [of.vocabulary, of.hidden])?,
            positions: positions + types.narrow(0, 0, 1),
            norm: loader.norm("embeddings.LayerNorm", of.hidden)?,
            layers: layers.collect::<Result<_, _>>()?,
            device: device.clone(),
            heads: of.heads,
            hidden: of.hidden,
            activation: of.activation,
        })
    }

    /// One pooled vector per text, of token ids within the vocabulary, at least one and at most `positions` per text. `None` if
    /// the device gave back something else than numbers.
    pub(super) fn embed(
        &self,
        texts: &[&[u32]],
        pooling: Pooling,
        normalize: bool,
    ) -> Option<Vec<Vec<f32>>> {
        let rows = self.forward(texts)?.into_data();
        let rows = rows.as_slice::<f32>().ok()?;
        let mut at = 0;
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            let end = at + text.len() * self.hidden;
            let mut vector = pool(rows.get(at..end)?, self.hidden, pooling);
            if normalize {
                to_length_one(&mut vector);
            }
            vectors.push(vector.into_iter().map(|number| number as f32).collect());
            at = end;
        }
        Some(vectors)
    }

    /// The last layer's rows, one per token, text after text; `None` as [`Self::embed`].
    fn forward(&self, texts: &[&[u32]]) -> Option<Tensor<2>> {
        let ids = self.indices(
            texts
                .iter()
                .flat_map(|text| text.iter().map(|id| *id as i32)),
        );
        let places = self.indices(texts.iter().flat_map(|text| 0..text.len() as i32));
        let embedded = self.words.clone().select(0, ids) + self.positions.clone().select(0, places);
        let groups = groups(texts);
        let mut rows = self.norm.of(embedded);
        for layer in &self.layers {
            let seen = layer
                .attended
                .of(self.attend(layer.attend.of(rows.clone()), &groups));
            let attended = layer.attended_norm.of(seen + rows);
            let wide = layer.widen.of(attended.clone());
            let wide = match self.activation {
                Activation::Gelu => gelu_of(wide)?,
                Activation::GeluTanh => gelu_approximate(wide),
                Activation::Relu => relu(wide),
            };
            rows = layer.norm.of(layer.narrow.of(wide) + attended);
        }
        Some(rows)
    }

    fn indices(&self, numbers: impl Iterator<Item = i32>) -> Tensor<1, Int> {
        let numbers: Vec<i32> = numbers.collect();
        let shape = [numbers.len()];
        Tensor::from_data(TensorData::new(numbers, shape), &self.device)
    }

    /// Attention of each text over itself; `rows` hold query, key and value side by side.
    fn attend(&self, rows: Tensor<2>, groups: &[Group]) -> Tensor<2> {
        let size = self.hidden / self.heads;
        let of_group = |group: &Group| {
            let (texts, tokens) = (group.texts, group.tokens);
            let heads = rows
                .clone()
                .narrow(0, group.first_row, texts * tokens)
                .reshape([texts, tokens, 3 * self.heads, size])
                .swap_dims(1, 2);
            let part = |number: usize| heads.clone().narrow(1, number * self.heads, self.heads);
            let options = AttentionModuleOptions::default();
            attention(part(0), part(1), part(2), None, None, options)
                .swap_dims(1, 2)
                .reshape([texts * tokens, self.hidden])
        };
        let mut parts: Vec<Tensor<2>> = groups.iter().map(of_group).collect();
        match parts.pop() {
            Some(only) if parts.is_empty() => only,
            Some(last) => {
                parts.push(last);
                Tensor::cat(parts, 0)
            }
            None => rows,
        }
    }
}

/// Neighbouring texts of the same length.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    first_row: usize,
    texts: usize,
    tokens: usize,
}

fn groups(texts: &[&[u32]]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut row = 0;
    for text in texts {
        match groups.last_mut() {
            Some(group) if group.tokens == text.len() => group.texts += 1,
            _ => groups.push(Group {
                first_row: row,
                texts: 1,
                tokens: text.len(),
            }),
        }
        row += text.len();
    }
    groups
}

/// One vector from a text's rows; sums in f64, because it costs nothing.
fn pool(rows: &[f32], hidden: usize, pooling: Pooling) -> Vec<f64> {
    let mut rows = rows.chunks_exact(hidden);
    let tokens = rows.len().max(1) as f64;
    let widen = |row: &[f32]| row.iter().map(|number| f64::from(*number)).collect();
    let first: Vec<f64> = rows.next().map(widen).unwrap_or_default();
    let fold = |mut all: Vec<f64>, row: &[f32], join: fn(f64, f64) -> f64| {
        for (number, other) in all.iter_mut().zip(row) {
            *number = join(*number, f64::from(*other));
        }
        all
    };
    match pooling {
        Pooling::Cls => first,
        Pooling::Max => rows.fold(first, |all, row| fold(all, row, f64::max)),
        Pooling::Mean => {
            let mut sum = rows.fold(first, |all, row| fold(all, row, |a, b| a + b));
            sum.iter_mut().for_each(|number| *number /= tokens);
            sum
        }
    }
}

/// As the reference library: a vector shorter than 1e-12 stays as it is, nearly.
fn to_length_one(vector: &mut [f64]) {
    let length = vector
        .iter()
        .map(|number| number * number)
        .sum::<f64>()
        .sqrt();
    let length = length.max(1e-12);
    vector.iter_mut().for_each(|number| *number /= length);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise: the three poolings are what their names say.
    #[test]
    fn poolings() {
        let rows = [1.0, -4.0, 3.0, 2.0, 2.0, 5.0];
        assert_eq!(pool(&rows, 2, Pooling::Mean), [2.0, 1.0]);
        assert_eq!(pool(&rows, 2, Pooling::Cls), [1.0, -4.0]);
        assert_eq!(pool(&rows, 2, Pooling::Max), [3.0, 5.0]);
        let mut vector = vec![3.0, 4.0];
        to_length_one(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
    }

    /// The promise: only neighbours of one length share a product.
    #[test]
    fn equal_lengths_form_groups() {
        let (a, b): (&[u32], &[u32]) = (&[1, 2], &[1, 2, 3]);
        let found: Vec<_> = groups(&[a, a, b, a])
            .iter()
            .map(|group| (group.first_row, group.texts, group.tokens))
            .collect();
        assert_eq!(found, [(0, 2, 2), (4, 1, 3), (7, 1, 2)]);
    }
}
