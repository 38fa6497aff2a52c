//! The daemon's certificate. Owns loading it; never decides whom to trust: clients prove themselves with the token.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use super::ListenError;
use crate::config::TlsFiles;

/// Largest certificate or key file.
const MAX_PEM_BYTES: u64 = 1 << 20;

pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ListenError> {
    let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
        let why = "none is configured".to_owned();
        return Err(ListenError::Certificate {
            what: "the TLS certificate or key",
            path: "[tls]".into(),
            why,
        });
    };
    let chain = read("the TLS certificate", certificate).and_then(|text| {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            Ok(_) => Err(unusable("the TLS certificate", certificate, "no certificate is in it")),
            Err(error) => Err(unusable("the TLS certificate", certificate, &format!("{error:?}"))),
        }
    })?;
    let secret = read("the TLS key", key)?;
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|_| unusable("the TLS key", key, "no private key is in it"))?;
    warn_if_open(key);
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("the TLS set-up for", certificate, &error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| {
            unusable("the TLS certificate", certificate, &format!("{error} (key: {})", key.display()))
        })?;
    let mut config = config;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ListenError> {
    match fs::metadata(path) {
        Ok(file) if file.len() > MAX_PEM_BYTES => Err(unusable(what, path, "it is larger than 1 MiB")),
        Ok(_) => fs::read(path).map_err(|error| unusable(what, path, &error.to_string())),
        Err(error) => Err(unusable(what, path, &error.to_string())),
    }
}

fn warn_if_open(key: &Path) {
    if fs::metadata(key).is_ok_and(|file| file.mode() & 0o007 != 0) {
        tracing::warn!(path = %key.display(), "every user of this machine can read the TLS key: chmod 600 it");
    }
}

fn unusable(what: &'static str, path: &Path, why: &str) -> ListenError {
    ListenError::Certificate { what, path: path.to_owned(), why: why.to_owned() }
}
