//! N+K: how many data and how many parity blocks a parity group has.

use std::fmt;
use std::str::FromStr;

use crate::ErasureError;

/// Most data blocks in a parity group.
pub const MAX_DATA: usize = 16;
/// Most parity blocks in a parity group.
pub const MAX_PARITY: usize = 4;
/// Most blocks in a parity group.
pub const MAX_TOTAL: usize = MAX_DATA + MAX_PARITY;

/// N data blocks and K parity blocks, from 1+0 to 16+4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Geometry {
    data: u8,
    parity: u8,
}

impl Geometry {
    /// Checks the limits; the only way to make one.
    pub const fn new(data: u8, parity: u8) -> Result<Self, ErasureError> {
        if data == 0 || data as usize > MAX_DATA || parity as usize > MAX_PARITY {
            return Err(ErasureError::GeometryOutOfRange { data, parity });
        }
        Ok(Self { data, parity })
    }

    /// N.
    pub const fn data(self) -> usize {
        self.data as usize
    }

    /// K.
    pub const fn parity(self) -> usize {
        self.parity as usize
    }

    /// N + K.
    pub const fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// All valid geometries, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=16).flat_map(|data| (0..=4).map(move |parity| Self { data, parity }))
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl FromStr for Geometry {
    type Err = ErasureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || ErasureError::GeometrySyntax { text: text.to_owned() };
        // u8::from_str takes a sign: "8++2" must not pass.
        let number = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(syntax());
            }
            digits.parse::<u8>().map_err(|_| syntax())
        };
        let (data, parity) = text.trim().split_once('+').ok_or_else(syntax)?;
        Self::new(number(data)?, number(parity)?)
    }
}

impl TryFrom<(u8, u8)> for Geometry {
    type Error = ErasureError;

    fn try_from((data, parity): (u8, u8)) -> Result<Self, Self::Error> {
        Self::new(data, parity)
    }
}

impl From<Geometry> for (u8, u8) {
    fn from(g: Geometry) -> Self {
        (g.data, g.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_valid_geometry_survives_text_and_pairs() {
        let mut seen = 0;
        for g in Geometry::all() {
            assert_eq!(g.to_string().parse(), Ok(g));
            assert_eq!(Geometry::try_from(<(u8, u8)>::from(g)), Ok(g));
            seen += 1;
        }
        assert_eq!(seen, 80);
    }

    #[test]
    fn geometries_outside_the_limits_are_refused() {
        for text in ["0+0", "0+1", "17+0", "16+5", "255+255"] {
            let refused = text.parse::<Geometry>();
            assert!(matches!(refused, Err(ErasureError::GeometryOutOfRange { .. })), "{text}");
        }
        for text in ["", "8", "+", "8+", "+2", "8++2", "8+2+1", "8-2", "a+b", "256+1", "8 + 2"] {
            let refused = text.parse::<Geometry>();
            assert!(matches!(refused, Err(ErasureError::GeometrySyntax { .. })), "{text}");
        }
    }
}
