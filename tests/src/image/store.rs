//! Where images live, and how each is built exactly once.
//!
//! An image is a folder named after its recipe's hash. It is built in a folder beside it and renamed when complete, so
//! whoever sees it sees all of it, and a changed recipe never finds an old image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::ImageError;

/// What an image is made of: everything that must lead to another image when it changes.
pub(super) struct Recipe {
    /// Name of the folder, and of the image in messages.
    pub(super) name: &'static str,
    /// How long building takes, for the person who waits.
    pub(super) takes: &'static str,
    /// Package names, scripts, versions; a number to count up when the code that builds it changes.
    pub(super) parts: Vec<String>,
}

/// Where images are: `$MEMDEX_GUESTS_DIR`, else `guests` in the target folder.
#[must_use]
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("MEMDEX_GUESTS_DIR") {
        return PathBuf::from(folder);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace.join(target).join("guests")
}

fn place(recipe: &Recipe) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    for part in &recipe.parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    folder().join(format!("{}-{}", recipe.name, &hasher.finalize().to_hex()[..12]))
}

/// True if the image is there.
pub(super) fn is_built(recipe: &Recipe) -> bool {
    place(recipe).is_dir()
}

/// The image's folder; `build` fills it first if it is not there. One builder at a time, also between processes.
pub(super) fn ensure(
    recipe: &Recipe,
    build: impl FnOnce(&Path) -> Result<(), ImageError>,
) -> Result<PathBuf, ImageError> {
    let place = place(recipe);
    if place.is_dir() {
        return Ok(place);
    }
    let parent = folder();
    fs::create_dir_all(&parent).map_err(ImageError::io("creating", &parent))?;
    let lock_path = parent.join(format!("{}.lock", recipe.name));
    let lock = File::create(&lock_path).map_err(ImageError::io("creating", &lock_path))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| ImageError::io("locking", &lock_path)(errno.into()))?;
    // whoever held the lock may have built it
    if place.is_dir() {
        return Ok(place);
    }

    eprintln!("guests: building {} ({})", recipe.name, recipe.takes);
    let partial = place.with_extension("partial");
    remove(&partial)?;
    fs::create_dir(&partial).map_err(ImageError::io("creating", &partial))?;
    build(&partial)?;
    remove_older(&parent, recipe.name)?;
    fs::rename(&partial, &place).map_err(ImageError::io("renaming", &partial))?;
    Ok(place)
}

/// Images of older recipes; guests that still run from one keep its open files.
fn remove_older(parent: &Path, name: &str) -> Result<(), ImageError> {
    for entry in fs::read_dir(parent).map_err(ImageError::io("listing", parent))?.flatten() {
        let file_name = entry.file_name();
        let hash = file_name.to_str().and_then(|text| text.strip_prefix(name)?.strip_prefix('-'));
        if hash.is_some_and(|hash| hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::io("removing", folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_recipe_has_another_place() {
        let recipe =
            |parts: [&str; 2]| Recipe { name: "x", takes: "", parts: parts.map(str::to_owned).to_vec() };
        let (a, b) = (recipe(["ab", "c"]), recipe(["a", "bc"]));
        assert_ne!(place(&a), place(&b));
    }

    #[test]
    fn only_images_of_the_same_name_make_room() {
        let parent = tempfile::tempdir().unwrap();
        for name in
            ["debian-0123456789ab", "debian-base-0123456789ab", "debian-0123456789ab.partial", "debian.lock"]
        {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        remove_older(parent.path(), "debian").unwrap();
        assert!(!parent.path().join("debian-0123456789ab").exists());
        assert!(parent.path().join("debian-base-0123456789ab").exists());
        assert!(parent.path().join("debian-0123456789ab.partial").exists());
    }
}
