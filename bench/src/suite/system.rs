//! What is measured: Burstbay, and what one would use in its place.

use std::path::Path;

use super::cluster::{Cluster, Geometry};
use super::gluster::Gluster;
use super::rows::{Row, Who};
use super::systems::SLOW_SYSTEMS;

/// What a system is made of.
pub enum Kind {
    /// A directory of the disk.
    Plain,
    /// Files that exist, O_DIRECT, fdatasync: what the device allows.
    Direct,
    /// Burstbay.
    Burstbay(Box<Cluster>),
    /// GlusterFS.
    Gluster(Box<Gluster>),
}

/// One column of the table.
pub struct System {
    /// Its name.
    pub name: String,
    /// Prefix of its files, as the load program gets it.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

impl System {
    /// Whether it does that row.
    pub fn does(&self, row: &Row) -> bool {
        match row.who {
            Who::All => true,
            Who::Files => !matches!(self.kind, Kind::Direct),
            Who::Burstbay => self.geometry().is_some(),
            Who::Slow => SLOW_SYSTEMS.contains(&self.name.as_str()),
            Who::Parity => self.geometry().is_some_and(|geometry| geometry.parity > 0),
        }
    }

    /// Of Burstbay.
    pub fn geometry(&self) -> Option<Geometry> {
        match &self.kind {
            Kind::Burstbay(cluster) => Some(cluster.shape.geometry),
            _ => None,
        }
    }

    /// Configuration of the client library.
    pub fn configuration(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Burstbay(cluster) => Some(&cluster.configuration),
            _ => None,
        }
    }

    /// Its processes, other than those of the load.
    pub fn pids(&self) -> Vec<(String, u32)> {
        match &self.kind {
            Kind::Plain | Kind::Direct => Vec::new(),
            Kind::Burstbay(cluster) => cluster.pids(),
            Kind::Gluster(gluster) => gluster.pids(),
        }
    }
}
