//! The bearer token that opens a host's TCP listener.
//!
//! Owns reading it; never prints it.

use std::{env, fmt, fs::File, io, io::Read, path::Path};

use reqwest::header::HeaderValue;

use crate::{ClientError, error::Kind, limits};

/// Environment variable that names the token file.
pub const TOKEN_FILE_VARIABLE: &str = "MEMDEX_TOKEN_FILE";
/// Token file if the variable is not set.
pub const DEFAULT_TOKEN_FILE: &str = "/etc/memdex/token";

/// A bearer token. Its `Debug` form does not show it.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    /// Takes the text of a token; white space around it is left out.
    ///
    /// # Errors
    /// If nothing is left, or it has characters that no token has (only visible ASCII is possible in an HTTP header).
    pub fn new(text: &str) -> Result<Self, ClientError> {
        Self::parse(text).map_err(|why| ClientError::new(Kind::Token { place: "the token".to_owned(), why }))
    }

    /// Reads a token file.
    ///
    /// # Errors
    /// If the file cannot be read or does not hold a token.
    pub fn from_file(path: &Path) -> Result<Self, ClientError> {
        read(path).map_err(|why| {
            ClientError::new(Kind::Token { place: format!("the token file {}", path.display()), why })
        })
    }

    /// The token of this machine: from the file in `$MEMDEX_TOKEN_FILE`, else `/etc/memdex/token`.
    /// `None` if the variable is not set and the default file does not exist.
    ///
    /// # Errors
    /// If the file is there but cannot be read or does not hold a token.
    pub fn from_environment() -> Result<Option<Self>, ClientError> {
        if let Some(path) = env::var_os(TOKEN_FILE_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::from_file(Path::new(&path)).map(Some);
        }
        let path = Path::new(DEFAULT_TOKEN_FILE);
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::from_file(path).map(Some),
        }
    }

    /// The text of the token, for a program of one's own that has to show it in turn. Never print it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.to_str().unwrap_or_default().trim_start_matches("Bearer ")
    }

    /// The value of the `Authorization` header.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err("it is empty; put the token of the host there".to_owned());
        }
        if text.len() > limits::MAX_TOKEN_BYTES || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it is not a token: one line of visible ASCII characters".to_owned());
        }
        let mut value = HeaderValue::try_from(format!("Bearer {text}"))
            .map_err(|_| "it is not a token: one line of visible ASCII characters".to_owned())?;
        // Keeps it out of the Debug form of requests, too.
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

fn read(path: &Path) -> Result<Token, String> {
    let advice = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "{error}; run as a user who may read it, or point ${TOKEN_FILE_VARIABLE} to one you may read"
            )
        }
        _ => format!("{error}; point ${TOKEN_FILE_VARIABLE} to the token file of the host"),
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(advice)?;
    file.take(limits::MAX_TOKEN_BYTES as u64 + 2).read_to_end(&mut text).map_err(advice)?;
    Token::parse(&String::from_utf8_lossy(&text))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::new(" s3cret\n").unwrap();
        assert_eq!(token.header().to_str().unwrap(), "Bearer s3cret");
        let shown = format!("{token:?} {:?} {:#?}", token.header(), token);
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn files_that_hold_no_token_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(Token::from_file(&path).unwrap_err().to_string().contains("MEMDEX_TOKEN_FILE"));
        for (content, advice) in [
            (&b""[..], "empty"),
            (b" \n", "empty"),
            (b"two words", "one line"),
            (b"two\nlines", "one line"),
            (b"bell\x07", "one line"),
            (b"\xff\xfe", "one line"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Token::from_file(&path).unwrap_err().to_string();
            assert!(error.contains(advice) && !error.contains("two"), "{error}");
        }
        std::fs::write(&path, vec![b'a'; limits::MAX_TOKEN_BYTES + 1]).unwrap();
        assert!(Token::from_file(&path).is_err());
        std::fs::write(&path, b"abc\n").unwrap();
        assert!(Token::from_file(&path).is_ok());
    }
}
