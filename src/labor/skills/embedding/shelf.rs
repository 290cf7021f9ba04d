//! The models of a worker: the register that its node names, and the one model that was used last, loaded. Files are hashed when
//! they are loaded, so that a proof never names a model that was not the one. It must not know how texts are cut.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;

use super::encoder::Encoder;
use super::vectors::Header;
use super::{Job, MAX_VECTOR_BYTES};
use crate::labor::LaborError;
use crate::labor::models::directory::{self, Description};
use crate::labor::models::{Model, Models};
use crate::labor::skills::SkillError;

/// A model in memory.
pub(super) struct Loaded {
    pub(super) description: Description,
    pub(super) tokenizer: tokenizers::Tokenizer,
    pub(super) encoder: Encoder,
    pub(super) header: Header,
}

/// Where a worker finds its models.
pub struct Shelf {
    models: Models,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

impl Shelf {
    /// The models of a register.
    pub fn of(models: Models) -> Self {
        Self {
            models,
            loaded: Mutex::default(),
        }
    }

    /// No models.
    pub fn empty() -> Self {
        // A path that cannot exist: no register is found below a file.
        Self::of(Models::at("/dev/null"))
    }

    /// The register.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The model of a job, loaded now or before.
    pub(super) fn load(&self, job: &Job) -> Result<Arc<Loaded>, SkillError> {
        let model = choose(job, &self.models)?;
        let mut place = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = place.as_ref()
            && hex::encode(loaded.header.model) == model.hash
        {
            return Ok(Arc::clone(loaded));
        }
        // The old one goes first, unless a job still has it: two at once may be more than the worker's memory.
        *place = None;
        let loaded = Arc::new(load(&model).map_err(|error| refused(&error))?);
        *place = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

pub(super) fn refused(error: &LaborError) -> SkillError {
    SkillError {
        code: error.code(),
        message: error.to_string(),
    }
}

/// The registered model that a job means, if the job fits it.
pub(super) fn choose(job: &Job, models: &Models) -> Result<Model, SkillError> {
    let input = &job.input;
    let model = models.find(&input.model, input.model_hash.as_deref());
    let model = model.map_err(|error| refused(&error))?;
    if input.dim.is_some_and(|dim| dim != model.dim) {
        return Err(SkillError::input(format!(
            "`dim` is not {}, the dimension of the model {}",
            model.dim, input.model
        )));
    }
    let bytes = 4 * u64::from(model.dim) * u64::from(job.units()) * job.slots() as u64;
    if bytes > MAX_VECTOR_BYTES {
        return Err(SkillError::input(format!(
            "the vectors would take {bytes} bytes, {MAX_VECTOR_BYTES} are allowed; ask several times"
        )));
    }
    Ok(model)
}

fn load(model: &Model) -> Result<Loaded, LaborError> {
    let dir: &Path = &model.dir;
    let description = Description::read(dir)?;
    let tokenizer = description.tokenizer(dir)?;
    let encoder = Encoder::load(&description, dir, &Device::flex())?;
    // After reading, so that what was read is what was hashed, unless somebody works at it on purpose.
    let hash = directory::model_hash(&directory::hash_files(dir, &description.files)?);
    let changed = || LaborError::ModelChanged(model.name.clone());
    let bytes = hex::decode(&hash).ok().filter(|_| hash == model.hash);
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    Ok(Loaded {
        header: Header {
            model: hash.ok_or_else(changed)?,
            dim: description.hidden as u32,
            normalized: description.normalize,
        },
        description,
        tokenizer,
        encoder,
    })
}
