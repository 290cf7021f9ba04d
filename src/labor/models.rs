//! The models of this machine: directories in Hugging Face layout that the owner has named with `legion models add`, what they
//! hold, and whether they are still there. A model is known to others by its hash: SHA-256 over the names, sizes and hashes of
//! the files that decide its results. This file keeps the register (`models/register.json` in the home); `directory` reads what
//! a directory says of itself, `weights` its tensors. It must not know skills, jobs or peers, and it loads nothing by itself.

pub(crate) mod directory;
pub(crate) mod weights;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LaborError;
use directory::Description;

/// Longest name of a model.
pub const MAX_NAME_BYTES: usize = 64;
/// The largest register that is read.
const MAX_REGISTER_BYTES: u64 = 4 << 20;

/// One file that decides a model's results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Path below the model's directory, with `/`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, hex.
    pub sha256: String,
}

/// A model that the owner has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What inputs call it.
    pub name: String,
    /// Where its files lie.
    pub dir: PathBuf,
    /// Hash of all its files, hex: the same on every machine that has the same files.
    pub hash: String,
    /// The architecture, `bert`.
    pub kind: String,
    /// Numbers in a vector.
    pub dim: u32,
    /// Tokens of a text that are read; the rest is cut off.
    pub max_tokens: u32,
    /// How token vectors become one: `mean`, `cls` or `max`.
    pub pooling: String,
    /// Whether vectors have length 1.
    pub normalized: bool,
    /// What was hashed.
    pub files: Vec<ModelFile>,
    /// Whether the files are a copy in the home, removed with the model.
    pub copied: bool,
}

impl Model {
    /// Whether its files are all there, with their sizes.
    pub fn is_present(&self) -> bool {
        let sized = |file: &ModelFile| {
            fs::metadata(self.dir.join(&file.name))
                .is_ok_and(|meta| meta.is_file() && meta.len() == file.bytes)
        };
        !self.files.is_empty() && self.files.iter().all(sized)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    version: u32,
    models: Vec<Model>,
}

/// The register of a home.
#[derive(Debug, Clone)]
pub struct Models {
    root: PathBuf,
}

impl Models {
    /// The register in this folder (`models/` of a home), which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All models, by name; none without a register.
    ///
    /// # Errors
    /// `model_register` when there is a register that cannot be read.
    pub fn list(&self) -> Result<Vec<Model>, LaborError> {
        let path = self.register();
        let unreadable = |reason: String| LaborError::ModelRegister {
            path: path.clone(),
            reason,
        };
        let bytes = match directory::read_small(&path, MAX_REGISTER_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let register: Register =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if register.version != 1 {
            return Err(unreadable(format!("it has version {}", register.version)));
        }
        Ok(register.models)
    }

    /// The models whose files are all there with their sizes: what this machine can offer. Their content is hashed again when
    /// they are loaded. A register that cannot be read offers nothing.
    pub fn present(&self) -> Vec<Model> {
        let mut models = self.list().unwrap_or_default();
        models.retain(Model::is_present);
        models
    }

    /// The present model with this hash; without one, the one with this name.
    ///
    /// # Errors
    /// `model_missing`.
    pub fn find(&self, name: &str, hash: Option<&str>) -> Result<Model, LaborError> {
        let wanted = |model: &Model| match hash {
            Some(hash) => model.hash == hash,
            None => model.name == name,
        };
        let found = self.present().into_iter().find(wanted);
        found.ok_or_else(|| LaborError::ModelMissing(hash.unwrap_or(name).to_owned()))
    }

    /// Checks a directory (settings known, every tensor there with its shape, the tokenizer loads), hashes it and registers it
    /// under `name`, or the directory's own name. With `copy` its files are copied into the home first. The same files again
    /// under the same name change nothing.
    ///
    /// # Errors
    /// `model_invalid` says what is wrong with the directory; `model_exists`, `model_name`, `model_register`, `model_io`.
    pub fn add(&self, dir: &Path, name: Option<&str>, copy: bool) -> Result<Model, LaborError> {
        let dir = fs::canonicalize(dir).map_err(|error| io(dir, &error))?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => dir
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        };
        check_name(&name)?;
        let description = Description::read(&dir)?;
        description.check_parts(&dir)?;
        let files = directory::hash_files(&dir, &description.files)?;
        let _lock = self.lock()?;
        let mut models = self.list()?;
        let mut model = Model {
            name,
            hash: directory::model_hash(&files),
            kind: description.kind.clone(),
            dim: description.hidden as u32,
            max_tokens: description.max_tokens as u32,
            pooling: description.pooling.name().to_owned(),
            normalized: description.normalize,
            files,
            copied: copy,
            dir,
        };
        if let Some(known) = models.iter().find(|known| known.name == model.name) {
            let same = known.hash == model.hash && known.copied == copy;
            return if same && (copy || known.dir == model.dir) {
                Ok(known.clone())
            } else {
                Err(LaborError::ModelExists(model.name))
            };
        }
        if copy {
            model.dir = self.copy(&model)?;
        }
        models.push(model.clone());
        models.sort_by(|a, b| a.name.cmp(&b.name));
        self.write(models)?;
        Ok(model)
    }

    /// Forgets a model; its files are deleted only where they are a copy in the home.
    ///
    /// # Errors
    /// `model_missing`, `model_register`, `model_io`.
    pub fn remove(&self, name: &str) -> Result<Model, LaborError> {
        let _lock = self.lock()?;
        let mut models = self.list()?;
        let place = models.iter().position(|model| model.name == name);
        let place = place.ok_or_else(|| LaborError::ModelMissing(name.to_owned()))?;
        let model = models.remove(place);
        self.write(models)?;
        let copy = self.copies().join(&model.name);
        if model.copied && copy.exists() {
            fs::remove_dir_all(&copy).map_err(|error| io(&copy, &error))?;
        }
        Ok(model)
    }

    fn register(&self) -> PathBuf {
        self.root.join("register.json")
    }

    fn copies(&self) -> PathBuf {
        self.root.join("copies")
    }

    /// Two commands at once must not lose one of two entries. Held until the file is closed.
    fn lock(&self) -> Result<File, LaborError> {
        make_dir(&self.root)?;
        let path = self.root.join("register.lock");
        let locked = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| io(&path, &error))
    }

    /// The register is the old one or the new one, whatever happens in between.
    fn write(&self, models: Vec<Model>) -> Result<(), LaborError> {
        let path = self.register();
        let text =
            serde_json::to_vec_pretty(&Register { version: 1, models }).map_err(|error| {
                LaborError::ModelRegister {
                    path: path.clone(),
                    reason: error.to_string(),
                }
            })?;
        let next = self.root.join("register.json.new");
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&next)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&next, &path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|error| io(&path, &error))
    }

    /// Copies the files that count, and nothing else; the copies are hashed, for the source may change meanwhile.
    fn copy(&self, model: &Model) -> Result<PathBuf, LaborError> {
        let target = self.copies().join(&model.name);
        if target.exists() {
            // Left by an `add` that was interrupted: no entry names it.
            fs::remove_dir_all(&target).map_err(|error| io(&target, &error))?;
        }
        for file in &model.files {
            let to = target.join(&file.name);
            if let Some(folder) = to.parent() {
                make_dir(folder)?;
            }
            fs::copy(model.dir.join(&file.name), &to).map_err(|error| io(&to, &error))?;
        }
        let names: Vec<String> = model.files.iter().map(|file| file.name.clone()).collect();
        if directory::hash_files(&target, &names)? != model.files {
            return Err(LaborError::ModelInvalid {
                path: model.dir.clone(),
                reason: "its files changed while they were copied".to_owned(),
            });
        }
        Ok(target)
    }
}

fn make_dir(path: &Path) -> Result<(), LaborError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(|error| io(path, &error))
}

fn io(path: &Path, error: &std::io::Error) -> LaborError {
    LaborError::ModelIo {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Letters, digits and `._-`, no leading dot: a name is also a folder's name.
fn check_name(name: &str) -> Result<(), LaborError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with('.')
    {
        Ok(())
    } else {
        Err(LaborError::ModelName(name.to_owned()))
    }
}
