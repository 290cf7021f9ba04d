//! What a directory in Hugging Face layout says of its encoder: `config.json` (architecture), `modules.json` with the pooling's
//! `config.json` (how token vectors become one), `sentence_bert_config.json` (how many tokens are read), `tokenizer.json` and
//! `model.safetensors`. Everything that would change results and is not understood is refused by name. It must not compute.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokenizers::PostProcessor as _;

use super::ModelFile;
use super::weights::Weights;
use crate::labor::LaborError;

/// The most numbers in a vector.
pub(crate) const MAX_DIM: usize = 1024;
const MAX_SETTINGS_BYTES: u64 = 1 << 20;
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

const CONFIG: &str = "config.json";
const MODULES: &str = "modules.json";
const SENTENCE: &str = "sentence_bert_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

/// The feed-forward layer's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent.
    GeluTanh,
    Relu,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    Cls,
    Max,
}

impl Pooling {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
        }
    }
}

/// An encoder, as its directory describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Description {
    pub(crate) kind: String,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) token_types: usize,
    pub(crate) norm_epsilon: f64,
    pub(crate) activation: Activation,
    pub(crate) pooling: Pooling,
    pub(crate) normalize: bool,
    pub(crate) lower_case: bool,
    pub(crate) max_tokens: usize,
    /// The files that decide the results, sorted.
    pub(crate) files: Vec<String>,
}

#[derive(Deserialize)]
struct BertConfig {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "tiny")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn two() -> usize {
    2
}

fn tiny() -> f64 {
    1e-12
}

fn gelu() -> String {
    "gelu".to_owned()
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize)]
struct SentenceConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

impl Description {
    /// Reads the small files of a directory.
    ///
    /// # Errors
    /// `model_invalid`, naming the file and what in it is not supported.
    pub(crate) fn read(dir: &Path) -> Result<Self, LaborError> {
        let config: BertConfig = required(dir, CONFIG)?;
        let (activation, kind) = check_config(dir, &config)?;
        let mut files = vec![CONFIG.to_owned(), TOKENIZER.to_owned(), WEIGHTS.to_owned()];
        let sentence: Option<SentenceConfig> = optional(dir, SENTENCE)?;
        let (mut lower_case, mut max_tokens) = (false, config.max_position_embeddings);
        if let Some(sentence) = sentence {
            lower_case = sentence.do_lower_case;
            max_tokens = sentence
                .max_seq_length
                .unwrap_or(max_tokens)
                .min(max_tokens);
            files.push(SENTENCE.to_owned());
        }
        if max_tokens < 3 {
            return Err(invalid(
                dir,
                SENTENCE,
                "`max_seq_length` must be at least 3",
            ));
        }
        let mut description = Self {
            kind,
            hidden: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            intermediate: config.intermediate_size,
            vocabulary: config.vocab_size,
            positions: config.max_position_embeddings,
            token_types: config.type_vocab_size,
            norm_epsilon: config.layer_norm_eps,
            activation,
            // A plain encoder without modules is averaged, as the reference library does it.
            pooling: Pooling::Mean,
            normalize: false,
            lower_case,
            max_tokens,
            files,
        };
        description.read_modules(dir)?;
        description.files.sort();
        Ok(description)
    }

    fn read_modules(&mut self, dir: &Path) -> Result<(), LaborError> {
        let Some(modules) = optional::<Vec<Module>>(dir, MODULES)? else {
            return Ok(());
        };
        self.files.push(MODULES.to_owned());
        let mut classes = Vec::new();
        for module in &modules {
            let class = module.class.rsplit('.').next().unwrap_or_default();
            classes.push(class);
            match class {
                "Transformer" if module.path.is_empty() => {}
                "Pooling" => {
                    let path = pooling_path(dir, &module.path)?;
                    self.pooling = read_pooling(dir, &path, self.hidden)?;
                    self.files.push(path);
                }
                "Normalize" => self.normalize = true,
                _ => {
                    let what = format!("the module `{}` is not supported", module.class);
                    return Err(invalid(dir, MODULES, &what));
                }
            }
        }
        if matches!(
            classes.as_slice(),
            ["Transformer", "Pooling"] | ["Transformer", "Pooling", "Normalize"]
        ) {
            Ok(())
        } else {
            let what = "the modules must be Transformer, Pooling and, if wanted, Normalize";
            Err(invalid(dir, MODULES, what))
        }
    }

    /// Every tensor is there with its shape, and the tokenizer loads and stays within the vocabulary.
    pub(crate) fn check_parts(&self, dir: &Path) -> Result<(), LaborError> {
        let weights = Weights::open(&dir.join(WEIGHTS))?;
        for (name, shape) in self.tensors() {
            weights.check(&name, &shape)?;
        }
        let tokenizer = self.tokenizer(dir)?;
        let tokens = tokenizer.get_vocab_size(true);
        if tokens > self.vocabulary {
            let what = format!(
                "it has {tokens} tokens, the encoder only {}",
                self.vocabulary
            );
            return Err(invalid(dir, TOKENIZER, &what));
        }
        Ok(())
    }

    /// The tokenizer, without the padding that its file may ask for, cutting texts at this model's length.
    pub(crate) fn tokenizer(&self, dir: &Path) -> Result<tokenizers::Tokenizer, LaborError> {
        let bad = |what: String| invalid(dir, TOKENIZER, &what);
        let bytes = read_small(&dir.join(TOKENIZER), MAX_TOKENIZER_BYTES)
            .map_err(|error| bad(error.to_string()))?;
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None);
        let added = tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        if added >= self.max_tokens {
            return Err(bad(format!(
                "it adds {added} tokens to every text, and the model reads {}",
                self.max_tokens
            )));
        }
        tokenizer
            .with_truncation(Some(tokenizers::TruncationParams {
                max_length: self.max_tokens,
                ..tokenizers::TruncationParams::default()
            }))
            .map_err(|error| bad(error.to_string()))?;
        Ok(tokenizer)
    }

    /// The tensors of the encoder, with the names and shapes that its file must have; a common prefix is allowed there.
    pub(crate) fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let (hidden, wide) = (self.hidden, self.intermediate);
        let mut all = BTreeMap::new();
        let mut put = |name: String, shape: &[usize]| {
            all.insert(name, shape.to_vec());
        };
        let tables = [
            ("word", self.vocabulary),
            ("position", self.positions),
            ("token_type", self.token_types),
        ];
        for (table, rows) in tables {
            put(
                format!("embeddings.{table}_embeddings.weight"),
                &[rows, hidden],
            );
        }
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..self.layers {
            let at = format!("encoder.layer.{layer}");
            for (part, out, from) in [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", wide, hidden),
                ("output.dense", hidden, wide),
            ] {
                put(format!("{at}.{part}.weight"), &[out, from]);
                put(format!("{at}.{part}.bias"), &[out]);
            }
            norms.push(format!("{at}.attention.output.LayerNorm"));
            norms.push(format!("{at}.output.LayerNorm"));
        }
        for norm in norms {
            put(format!("{norm}.weight"), &[hidden]);
            put(format!("{norm}.bias"), &[hidden]);
        }
        all
    }
}

fn check_config(dir: &Path, config: &BertConfig) -> Result<(Activation, String), LaborError> {
    let refuse = |what: String| Err(invalid(dir, CONFIG, &what));
    if config.model_type != "bert" {
        return refuse(format!(
            "model_type `{}` is not supported; supported: bert",
            config.model_type
        ));
    }
    let positions = config.position_embedding_type.as_deref();
    if positions.is_some_and(|kind| kind != "absolute") {
        return refuse("only absolute position embeddings are supported".to_owned());
    }
    let activation = match config.hidden_act.as_str() {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return refuse(format!("hidden_act `{other}` is not supported")),
    };
    let within = |number: usize, most: usize| (1..=most).contains(&number);
    let sane = within(config.hidden_size, MAX_DIM)
        && within(config.num_hidden_layers, 64)
        && within(config.num_attention_heads, 64)
        && config
            .hidden_size
            .is_multiple_of(config.num_attention_heads.max(1))
        && within(config.intermediate_size, 16 * MAX_DIM)
        && within(config.vocab_size, 1 << 20)
        && within(config.max_position_embeddings, 8192)
        && within(config.type_vocab_size, 16)
        && (0.0..=1e-3).contains(&config.layer_norm_eps);
    if sane {
        Ok((activation, config.model_type.clone()))
    } else {
        refuse(format!(
            "its sizes are out of range: at most {MAX_DIM} hidden, 64 layers, 64 heads that divide it"
        ))
    }
}

/// The pooling's settings, a path that stays inside the directory.
fn pooling_path(dir: &Path, folder: &str) -> Result<String, LaborError> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if folder.is_empty() || folder.contains('\\') || !Path::new(folder).components().all(plain) {
        let what = format!("the path `{folder}` is not a folder of the model");
        return Err(invalid(dir, MODULES, &what));
    }
    Ok(format!("{}/config.json", folder.trim_end_matches('/')))
}

fn read_pooling(dir: &Path, path: &str, hidden: usize) -> Result<Pooling, LaborError> {
    let settings: BTreeMap<String, serde_json::Value> = required(dir, path)?;
    let dim = settings.get("word_embedding_dimension");
    if dim.is_some_and(|dim| dim.as_u64() != Some(hidden as u64)) {
        return Err(invalid(dir, path, "its dimension is not the encoder's"));
    }
    let on: Vec<&str> = settings
        .iter()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(name, _)| name.trim_start_matches("pooling_mode_"))
        .collect();
    match on.as_slice() {
        ["mean_tokens"] => Ok(Pooling::Mean),
        ["cls_token"] => Ok(Pooling::Cls),
        ["max_tokens"] => Ok(Pooling::Max),
        other => {
            let what = format!("pooling {other:?} is not supported; supported: mean, cls or max");
            Err(invalid(dir, path, &what))
        }
    }
}

/// Size and hash of each file.
pub(crate) fn hash_files(dir: &Path, names: &[String]) -> Result<Vec<ModelFile>, LaborError> {
    let hash = |name: &String| {
        let path = dir.join(name);
        let (bytes, sha256) = hash_file(&path).map_err(|error| super::io(&path, &error))?;
        Ok(ModelFile {
            name: name.clone(),
            bytes,
            sha256,
        })
    };
    names.iter().map(hash).collect()
}

fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok((bytes, hex::encode(hasher.finalize())));
        }
        bytes += read as u64;
        hasher.update(chunk.get(..read).unwrap_or_default());
    }
}

/// SHA-256 of `legion/model/v1\n` and one line `name size sha256\n` per file, sorted by name; hex.
pub(crate) fn model_hash(files: &[ModelFile]) -> String {
    let mut lines: Vec<String> = files
        .iter()
        .map(|file| format!("{} {} {}\n", file.name, file.bytes, file.sha256))
        .collect();
    lines.sort();
    let mut hasher = Sha256::new();
    hasher.update(b"legion/model/v1\n");
    lines.iter().for_each(|line| hasher.update(line));
    hex::encode(hasher.finalize())
}

/// A whole file of at most `limit_bytes`.
pub(super) fn read_small(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit_bytes + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        let what = format!("it is larger than {limit_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

fn required<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T, LaborError> {
    let found = optional(dir, name)?;
    found.ok_or_else(|| invalid(dir, name, "the file is missing"))
}

fn optional<T: serde::de::DeserializeOwned>(
    dir: &Path,
    name: &str,
) -> Result<Option<T>, LaborError> {
    let bytes = match read_small(&dir.join(name), MAX_SETTINGS_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(invalid(dir, name, &error.to_string())),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| invalid(dir, name, &error.to_string()))
}

fn invalid(dir: &Path, name: &str, what: &str) -> LaborError {
    LaborError::ModelInvalid {
        path: dir.join(name),
        reason: what.to_owned(),
    }
}
