//! The secret that the servers of a cluster share: 32 bytes in a file of each.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use siphasher::sip128::SipHasher24;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error(
        "{path} does not exist. The first server of a cluster makes it with `bbd format`; every \
         other needs a copy of that file"
    )]
    Missing {
        /// The file.
        path: String,
    },
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        error: io::Error,
    },
    /// Others may read it, or have written it.
    #[error("{path} {why}: it must be a file of user {uid} with mode 0600 or 0400")]
    Exposed {
        /// The file.
        path: String,
        /// What is wrong.
        why: &'static str,
        /// Who may own it.
        uid: u32,
    },
    /// Not a key.
    #[error("{path} has {bytes} bytes: a key has {KEY_BYTES}, any random ones")]
    Length {
        /// The file.
        path: String,
        /// Its length; one more than a key's means "more".
        bytes: usize,
    },
}

/// A cluster's key. Never printed.
#[derive(Clone)]
pub struct ClusterKey([u8; KEY_BYTES]);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl ClusterKey {
    /// A key that is known already.
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads a key's file, which must belong to the user of this process, or to root, and be
    /// readable to nobody else.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let shown = path.display().to_string();
        let failed = |error| KeyError::Io { path: shown.clone(), error };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { path: shown });
            }
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(failed)?;
        let uid = own_uid();
        let why = match () {
            () if !found.is_file() => Some("is no file"),
            () if found.uid() != uid && found.uid() != 0 => Some("belongs to somebody else"),
            () if found.mode() & 0o177 != 0 => Some("can be used by others"),
            () => None,
        };
        if let Some(why) = why {
            return Err(KeyError::Exposed { path: shown, why, uid });
        }
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(KEY_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
        key.map(Self).map_err(|_| KeyError::Length { path: shown, bytes: bytes.len() })
    }

    /// Makes a key's file where there is none. True if it did.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn create(path: &Path) -> Result<bool, KeyError> {
        let failed = |error| KeyError::Io { path: path.display().to_string(), error };
        if path.exists() {
            return Ok(false);
        }
        let key = random().map_err(failed)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        // Under another name first: a crash leaves no half of a key.
        let partial = path.with_extension("partial");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&partial).map_err(failed)?;
        file.write_all(&key).and_then(|()| file.sync_all()).map_err(failed)?;
        // Unlike a rename it never replaces what another process has made meanwhile.
        let linked = std::fs::hard_link(&partial, path);
        std::fs::remove_file(&partial).map_err(failed)?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// A key for one use in one cluster. Knowing it says nothing of the others.
    pub fn sub_key(&self, purpose: &str, cluster: &[u8]) -> SubKey {
        let mut message = purpose.as_bytes().to_vec();
        message.push(0);
        message.extend_from_slice(cluster);
        // One half after the other, so that both are needed.
        let mut key = [0; 16];
        for half in self.0.chunks_exact(16) {
            let half = <&[u8; 16]>::try_from(half).expect("half of 32 bytes");
            message.extend(key);
            key = SipHasher24::new_with_key(half).hash(&message).as_bytes();
        }
        SubKey(SipHasher24::new_with_key(&key))
    }
}

/// A key for one use.
#[derive(Clone, Copy)]
pub struct SubKey(SipHasher24);

impl std::fmt::Debug for SubKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SubKey(..)")
    }
}

impl SubKey {
    /// What only who has the key can say of a message: SipHash-2-4 with 128 bits.
    pub fn sign(&self, message: &[u8]) -> [u8; 16] {
        self.0.hash(message).as_bytes()
    }

    /// True if `signature` is that of `message`. Takes as long wherever they differ.
    pub fn verify(&self, message: &[u8], signature: &[u8; 16]) -> bool {
        let right = self.sign(message);
        right.iter().zip(signature).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

/// User of this process.
pub(super) fn own_uid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

/// Bytes that nobody can guess.
pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    // SAFETY: as many writable bytes as are named.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few come whole, or not at all.
    if usize::try_from(got) == Ok(bytes.len()) {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bb-key-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_read_again() {
        let folder = folder("made");
        let path = folder.join("etc/cluster.key");
        assert!(matches!(ClusterKey::load(&path), Err(KeyError::Missing { .. })));
        assert!(ClusterKey::create(&path).unwrap());
        let made = ClusterKey::load(&path).unwrap();
        assert!(!ClusterKey::create(&path).unwrap(), "there is one");
        assert_eq!(ClusterKey::load(&path).unwrap().0, made.0);
        assert_ne!(made.0, [0; KEY_BYTES]);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_or_of_another_length_is_refused() {
        let folder = folder("bad");
        let path = folder.join("cluster.key");
        ClusterKey::create(&path).unwrap();
        for (mode, good) in [(0o640, false), (0o604, false), (0o700, false), (0o400, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(ClusterKey::load(&path).is_ok(), good, "{mode:o}");
        }
        for len in [0, 31, 33, 128] {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, vec![7; len]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let refused = ClusterKey::load(&path).err();
            assert!(matches!(refused, Some(KeyError::Length { .. })), "{len}: {refused:?}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn keys_for_other_uses_other_clusters_and_of_other_files_sign_otherwise() {
        let (one, mut other) = ([3; KEY_BYTES], [3; KEY_BYTES]);
        other[31] = 4;
        let sign = |key, purpose, cluster: &[u8]| {
            ClusterKey::new(key).sub_key(purpose, cluster).sign(b"message")
        };
        let right = sign(one, "a", b"x");
        assert_eq!(right, sign(one, "a", b"x"));
        for wrong in [sign(other, "a", b"x"), sign(one, "b", b"x"), sign(one, "a", b"y")] {
            assert_ne!(wrong, right);
        }
        let key = ClusterKey::new(one).sub_key("a", b"x");
        assert!(key.verify(b"message", &right));
        assert!(!key.verify(b"massage", &right));
        for bit in 0..128 {
            let mut forged = right;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify(b"message", &forged), "bit {bit}");
        }
    }
}
