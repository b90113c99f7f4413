//! Reading and writing the fixed little-endian layouts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes that do not hold what they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("message ends after {have} of {want} bytes")]
    Short {
        /// Bytes needed at the least.
        want: usize,
        /// Bytes there.
        have: usize,
    },
    /// Bytes are left over.
    #[error("{0} bytes too many at the end of the message")]
    Long(usize),
    /// A field has a value that it must not have.
    #[error("field {0} has an impossible value")]
    Field(&'static str),
}

/// Takes fixed layouts off the front of a byte string.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The next `T`.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
    ) -> Result<&'a T, DecodeError> {
        let have = self.bytes.len();
        let (value, rest) = T::ref_from_prefix(self.bytes)
            .map_err(|_| DecodeError::Short { want: size_of::<T>(), have })?;
        self.bytes = rest;
        Ok(value)
    }

    /// The next `count` of `T`.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take_slice<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
        count: usize,
    ) -> Result<&'a [T], DecodeError> {
        let have = self.bytes.len();
        let want = size_of::<T>().saturating_mul(count);
        let short = DecodeError::Short { want, have };
        if have < want {
            return Err(short);
        }
        let (value, rest) =
            <[T]>::ref_from_prefix_with_elems(self.bytes, count).map_err(|_| short)?;
        self.bytes = rest;
        Ok(value)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take_bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        self.take_slice::<u8>(len)
    }

    /// True at the end.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that is left.
    pub const fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`DecodeError::Long`].
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::Long(self.bytes.len())) }
    }
}

/// Puts fixed layouts one after the other.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Nothing yet, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// Adds `value`.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) -> &mut Self {
        self.bytes.extend_from_slice(value.as_bytes());
        self
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
