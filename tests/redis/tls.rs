//! Certificates for a server on the loopback, and for one client.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::process::Folder;

/// Where the files are, all of them PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    /// Of the authority that has signed the others.
    pub(crate) ca: PathBuf,
    /// For `localhost`, `127.0.0.1` and `::1`.
    pub(crate) server: (PathBuf, PathBuf),
    /// A certificate and its key that a client can show.
    pub(crate) client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes an authority that nobody else knows, and writes all into `folder`.
    pub(crate) fn make(folder: &Folder) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        // Without names of their own, OpenSSL takes the others for self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("it signs itself");
        let signed = |name: &str, subjects: &[&str]| {
            let subjects: Vec<String> = subjects.iter().map(ToString::to_string).collect();
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(subjects).expect("good names");
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority).expect("it signs");
            (
                write(folder, &format!("{name}.crt"), &certificate.pem()),
                write(folder, &format!("{name}.key"), &key.serialize_pem()),
            )
        };
        Self {
            ca: write(folder, "ca.crt", &authority.pem()),
            server: signed("server", &["localhost", "127.0.0.1", "::1"]),
            client: signed("client", &["client"]),
        }
    }
}

fn write(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let path = folder.file(name);
    fs::write(&path, text).expect("the folder is there");
    path
}
