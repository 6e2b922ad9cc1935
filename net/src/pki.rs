//! The cluster's authority and the certificates of nodes and clients.
//!
//! A certificate names exactly one role and name as a DNS name (`node.us-1.globalfs`, `client.laptop.globalfs`)
//! and its cluster as a URI (`globalfs:cluster/NAME`). Only nodes' certificates may be used by servers.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use webpki::EndEntityCert;

use crate::{Error, Result};

const DOMAIN: &str = "globalfs";
const CLUSTER_URI: &str = "globalfs:cluster/";
/// A DNS label holds 63 characters.
const NAME_LEN_MAX: usize = 63;
const CA_YEARS: i32 = 30;
const CERTIFICATE_YEARS: i32 = 20;
/// Certificate and key files are a few KiB; a wrong path must not read a disk image into memory.
const PEM_BYTES_MAX: u64 = 256 << 10;

/// What a certificate entitles its holder to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A process that hosts replicas; accepts connections.
    Node,
    /// A mount or a tool; only dials.
    Client,
}

/// A verified role and name, written `node.us-1.globalfs`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    /// Node or client.
    pub role: Role,
    /// One DNS label.
    pub name: String,
}

impl PeerName {
    /// Name of a node.
    pub fn node(name: impl Into<String>) -> Self {
        PeerName { role: Role::Node, name: name.into() }
    }

    /// Name of a client.
    pub fn client(name: impl Into<String>) -> Self {
        PeerName { role: Role::Client, name: name.into() }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Node => "node",
            Role::Client => "client",
        })
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{DOMAIN}", self.role, self.name)
    }
}

impl FromStr for PeerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, '.');
        let role = match parts.next() {
            Some("node") => Role::Node,
            Some("client") => Role::Client,
            _ => return Err(Error::Invalid(format!("{text:?} names neither a node nor a client"))),
        };
        let (Some(name), Some(DOMAIN)) = (parts.next(), parts.next()) else {
            return Err(Error::Invalid(format!("{text:?} is not of the form {role}.NAME.{DOMAIN}")));
        };
        check_name(name)?;
        Ok(PeerName { role, name: name.into() })
    }
}

/// Checks that a cluster's, node's or client's name is one lower-case DNS label.
pub fn check_name(name: &str) -> Result<()> {
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(Error::Invalid(format!("name {name:?}: 1 to {NAME_LEN_MAX} characters are allowed")));
    }
    if !name.chars().all(label) || name.starts_with('-') || name.ends_with('-') {
        return Err(Error::Invalid(format!(
            "name {name:?}: only lower-case letters, digits and inner hyphens are allowed"
        )));
    }
    Ok(())
}

/// Hash of the authority's certificate: the same on every member of one cluster, and on nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A cluster's certificate authority with its private key. Needed to issue, not to run.
pub struct ClusterCa {
    cluster: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl ClusterCa {
    /// Makes a new authority for the cluster of that name.
    pub fn create(cluster: &str) -> Result<Self> {
        check_name(cluster)?;
        let key = KeyPair::generate()?;
        let certificate = ca_params(cluster)?.self_signed(&key)?;
        Ok(ClusterCa {
            cluster: cluster.into(),
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key,
        })
    }

    /// Reads an authority written by [`ClusterCa::save`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self> {
        let certificate_pem = read_text(certificate)?;
        let der = single_certificate(certificate, &certificate_pem)?;
        let cluster = cluster_of(&der).map_err(|problem| bad(certificate, problem))?;
        let key_pair = KeyPair::from_pem(&read_text(key)?).map_err(|error| bad(key, error.to_string()))?;
        let holder = EndEntityCert::try_from(&der).map_err(|error| bad(certificate, error.to_string()))?;
        if holder.valid_dns_names().next().is_some() {
            return Err(bad(certificate, "is a member's certificate, not the authority's".into()));
        }
        if holder.subject_public_key_info().as_ref() != rcgen::PublicKeyData::subject_public_key_info(&key_pair) {
            return Err(bad(key, format!("does not belong to {}", certificate.display())));
        }
        Ok(ClusterCa { cluster, certificate: der, certificate_pem, key: key_pair })
    }

    /// Writes both files; the key with mode 0600. Neither may exist already: a second authority on top of
    /// the first would lock every member out.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<()> {
        write_new(key, self.key.serialize_pem().as_bytes(), 0o600)?;
        write_new(certificate, self.certificate_pem.as_bytes(), 0o644)
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity> {
        check_name(name)?;
        let peer = PeerName { role, name: name.into() };
        let key = KeyPair::generate()?;
        let params = member_params(&self.cluster, &peer)?;
        let certificate = params.signed_by(&key, &Issuer::new(ca_params(&self.cluster)?, &self.key))?;
        Ok(Identity {
            peer,
            cluster: self.cluster.clone(),
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            ca: self.certificate.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Hash of the authority's certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

/// What one member of a cluster shows and trusts: its certificate, its key and the authority's certificate.
pub struct Identity {
    peer: PeerName,
    cluster: String,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) ca: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Identity {
    /// Reads the three PEM files. Errors name the file and what is wrong with it.
    pub fn load(certificate: &Path, key: &Path, ca: &Path) -> Result<Self> {
        let certificate_pem = read_text(certificate)?;
        let key_pem = read_text(key)?;
        let ca_der = single_certificate(ca, &read_text(ca)?)?;
        let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| bad(certificate, error.to_string()))?;
        let first = chain.first().ok_or_else(|| bad(certificate, "holds no certificate".into()))?;
        let (peer, cluster) = verified_name(first).map_err(|problem| bad(certificate, problem))?;
        let ca_cluster = cluster_of(&ca_der).map_err(|problem| bad(ca, problem))?;
        if cluster != ca_cluster {
            let problem = format!("is of cluster {cluster:?}, but {} of {ca_cluster:?}", ca.display());
            return Err(bad(certificate, problem));
        }
        let identity = Identity {
            peer,
            cluster,
            key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| bad(key, error.to_string()))?,
            chain,
            ca: ca_der,
            certificate_pem,
            key_pem,
        };
        crate::tls::check_identity(&identity).map_err(|error| bad(certificate, error.to_string()))?;
        Ok(identity)
    }

    /// Writes certificate and key; the key with mode 0600, through a rename, replacing what was there.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<()> {
        replace(key, self.key_pem.as_bytes(), 0o600)?;
        replace(certificate, self.certificate_pem.as_bytes(), 0o644)
    }

    /// Role and name in the certificate.
    pub fn peer_name(&self) -> &PeerName {
        &self.peer
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Hash of the authority's certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.ca)
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity {
            peer: self.peer.clone(),
            cluster: self.cluster.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            ca: self.ca.clone(),
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, cluster {})", self.peer, self.cluster)
    }
}

/// Role, name and cluster in a certificate whose chain has been verified already.
pub(crate) fn verified_name(certificate: &CertificateDer<'_>) -> std::result::Result<(PeerName, String), String> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let mut names = parsed.valid_dns_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err("names no member, or more than one".into());
    };
    let peer = name.parse().map_err(|error: Error| error.to_string())?;
    Ok((peer, cluster_of(certificate)?))
}

fn cluster_of(certificate: &CertificateDer<'_>) -> std::result::Result<String, String> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let cluster = parsed.valid_uri_names().find_map(|uri| uri.strip_prefix(CLUSTER_URI)).map(str::to_owned);
    cluster.ok_or_else(|| "is not a certificate of a GlobalFS cluster".into())
}

fn ca_params(cluster: &str) -> Result<CertificateParams> {
    let mut params = base_params(cluster, &format!("GlobalFS authority of {cluster}"), CA_YEARS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn member_params(cluster: &str, peer: &PeerName) -> Result<CertificateParams> {
    let mut params = base_params(cluster, &peer.to_string(), CERTIFICATE_YEARS)?;
    let dns = peer.to_string().try_into()?;
    params.subject_alt_names.push(SanType::DnsName(dns));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match peer.role {
        Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base_params(cluster: &str, common_name: &str, years: i32) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "GlobalFS");
    subject.push(DnType::OrganizationalUnitName, cluster);
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(format!("{CLUSTER_URI}{cluster}").try_into()?)];
    // Whole years, from last year's start: members' clocks may differ.
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let year = 1970 + i32::try_from(seconds / 31_556_952).unwrap_or(60);
    params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + years, 1, 1);
    Ok(params)
}

fn single_certificate(path: &Path, pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(path, error.to_string()))
}

fn read_text(path: &Path) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|source| file_error(path, source)).map(|_| text)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // The umask may have taken bits off; the mode is part of the promise.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| file_error(path, source))
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    write_new(&temporary, bytes, mode)?;
    fs::rename(&temporary, path).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        file_error(path, source)
    })
}

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.into(), source }
}

fn bad(path: &Path, problem: String) -> Error {
    Error::BadFile { path: path.into(), problem }
}
