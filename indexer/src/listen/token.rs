//! The bearer token that every TCP listener wants.
//!
//! Owns the token file: making it, and refusing one that others can read. Never logs a token.
//!
//! # Made once, whole
//!
//! The file is written under a temporary name and then *linked* to its own, which fails if it is there already. So two
//! daemons started at once agree on one token, and nobody ever reads half of it.

use std::{
    env, fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use migrate_client::{DEFAULT_TOKEN_FILE, TOKEN_FILE_VARIABLE, limits::MAX_TOKEN_BYTES};
use subtle::ConstantTimeEq;

/// Bytes of randomness in a token that is made here.
const RANDOM_BYTES: usize = 32;

/// What a client must send. Its `Debug` form does not show it.
#[derive(Clone)]
pub struct AccessToken(String);

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
#[error("the token file {path} cannot be used: {why}", path = path.display())]
pub struct TokenError {
    path: PathBuf,
    why: String,
}

/// The file in `$MEMDEX_TOKEN_FILE`, else `/etc/memdex/token`.
#[must_use]
pub fn token_file() -> PathBuf {
    env::var_os(TOKEN_FILE_VARIABLE)
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_TOKEN_FILE), PathBuf::from)
}

impl AccessToken {
    /// Reads the token file, and makes it first if it is missing.
    ///
    /// # Errors
    /// If it cannot be made or read, is open to other users, or holds no token.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        let error = |why: String| TokenError { path: path.to_owned(), why };
        if matches!(fs::symlink_metadata(path), Err(e) if e.kind() == io::ErrorKind::NotFound) {
            create(path).map_err(|e| {
                error(format!(
                    "it is missing and cannot be made ({e}); run as root, or set ${TOKEN_FILE_VARIABLE}"
                ))
            })?;
        }
        Self::load(path)
    }

    /// Reads the token file.
    ///
    /// # Errors
    /// If it cannot be read, is open to other users, or holds no token.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        read(path).map_err(|why| TokenError { path: path.to_owned(), why })
    }

    /// Whether a client sent this token. Takes the same time wherever a wrong one differs.
    #[must_use]
    pub fn is(&self, sent: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(sent).into()
    }

    /// The token itself, to send to peers.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(hidden)")
    }
}

fn read(path: &Path) -> Result<AccessToken, String> {
    // Without waiting for a writer, should it be a pipe.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| format!("{error}; run as a user who may read it, or set ${TOKEN_FILE_VARIABLE}"))?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if metadata.mode() & 0o027 != 0 {
        let advice = "chmod 600 it, and change the token if others may have read it";
        return Err(format!("other users can use it (mode {:04o}); {advice}", metadata.mode() & 0o7777));
    }
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES as u64 + 2)
        .read_to_string(&mut text)
        .map_err(|_| "it does not hold text; delete it and a new one is made".to_owned())?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err("it is empty; delete it and a new one is made".to_owned());
    }
    if text.len() > MAX_TOKEN_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "a token is one line of visible ASCII characters; delete it and a new one is made".to_owned()
        );
    }
    Ok(AccessToken(text.to_owned()))
}

fn create(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".memdex-token-{}", random_hex::<8>()?));
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let text = random_hex::<RANDOM_BYTES>()?;
    let made = writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    match made {
        Ok(()) => {
            tracing::info!(path = %path.display(), "made a new token; peers and clients need the same");
            Ok(())
        }
        // Another daemon was quicker: its token is the token.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut random = [0; BYTES];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_missing_file_is_made_for_this_user_alone_and_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/token");
        let first = AccessToken::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.expose().len(), 64);
        assert!(AccessToken::load_or_create(&path).unwrap().is(first.expose().as_bytes()));
        assert!(!first.is(b"") && !first.is(&first.expose().as_bytes()[1..]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        assert!(!format!("{first:?}").contains(first.expose()));
    }

    #[test]
    fn daemons_started_at_once_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let tokens: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| AccessToken::load_or_create(&path).unwrap().0)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]));
    }

    #[test]
    fn open_empty_and_strange_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let refused = |content: &[u8], mode: u32, words: &str| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = AccessToken::load_or_create(&path).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("secret"), "{error}");
        };
        refused(b"secret", 0o644, "chmod 600");
        refused(b"secret", 0o604, "chmod 600");
        refused(b"secret", 0o620, "chmod 600");
        refused(b" \n", 0o600, "empty");
        refused(b"secret two", 0o600, "one line");
        refused(b"\xff\xfe", 0o600, "text");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(AccessToken::load_or_create(&path).unwrap_err().to_string().contains("not a file"));
    }
}
