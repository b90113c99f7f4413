//! Bodies of the requests that are not on the payload's path, as protocol buffers.
//!
//! The derive gives each message its encoding; there are no `.proto` files. Tags are never used
//! again for another meaning. Every body lies inside the frame's checksum.

use prost::Message;

use crate::ids::Fid;

/// Encodes a body.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    message.encode_to_vec()
}

/// Decodes a body.
///
/// # Errors
/// A sentence about what is wrong with it.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, crate::Failure> {
    M::decode(body).map_err(|error| crate::Failure::new(crate::Code::Invalid, error.to_string()))
}

/// A file's id.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PFid {
    /// Upper 64 bits.
    #[prost(fixed64, tag = "1")]
    pub high: u64,
    /// Lower 64 bits.
    #[prost(fixed64, tag = "2")]
    pub low: u64,
}

impl From<Fid> for PFid {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are wanted")]
    fn from(fid: Fid) -> Self {
        Self { high: (fid.0 >> 64) as u64, low: fid.0 as u64 }
    }
}

impl From<PFid> for Fid {
    fn from(fid: PFid) -> Self {
        Self(u128::from(fid.high) << 64 | u128::from(fid.low))
    }
}

/// A parity group's id.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PPgId {
    /// Mint slot.
    #[prost(uint64, tag = "1")]
    pub slot: u64,
    /// Session.
    #[prost(fixed64, tag = "2")]
    pub session: u64,
    /// Number within the session.
    #[prost(uint32, tag = "3")]
    pub sequence: u32,
    /// Home partition.
    #[prost(uint32, tag = "4")]
    pub home: u32,
}

impl From<crate::PgId> for PPgId {
    fn from(id: crate::PgId) -> Self {
        Self { slot: id.slot.0, session: id.session.0, sequence: id.sequence, home: id.home.0 }
    }
}

impl From<PPgId> for crate::PgId {
    fn from(id: PPgId) -> Self {
        Self {
            slot: crate::Tick(id.slot),
            session: crate::SessionId(id.session),
            sequence: id.sequence,
            home: crate::PartitionId(id.home),
        }
    }
}

/// First body on a connection, in both directions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// Oldest protocol version that the sender speaks.
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    /// Newest protocol version that the sender speaks; in the answer: the one that is used.
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    /// 1 = client, 2 = server.
    #[prost(uint32, tag = "3")]
    pub role: u32,
    /// Cluster's UUID; empty where the client does not know it yet.
    #[prost(bytes = "vec", tag = "4")]
    pub cluster: Vec<u8>,
    /// Host name, for people.
    #[prost(string, tag = "5")]
    pub host: String,
    /// Authentication method that the sender proposes or has chosen: "none" or "munge"; "auto" leaves
    /// it to the other side.
    #[prost(string, tag = "6")]
    pub auth_method: String,
    /// First step of that method.
    #[prost(bytes = "vec", tag = "7")]
    pub auth: Vec<u8>,
    /// Payload window granted to the peer, in bytes.
    #[prost(uint32, tag = "8")]
    pub credit_bytes: u32,
    /// Incarnation of the answering server.
    #[prost(uint64, tag = "9")]
    pub incarnation: u64,
}

/// Asks for the cluster map.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GetMap {
    /// Epoch that the caller has, 0 for none.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The caller can take a delta.
    #[prost(bool, tag = "2")]
    pub deltas: bool,
}

/// The cluster map, or nothing where the caller's is current.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetMapReply {
    /// Encoded map (crate cluster), empty where the caller's is current or `delta` is given.
    #[prost(bytes = "vec", tag = "1")]
    pub map: Vec<u8>,
    /// Encoded changes from the caller's epoch on (crate cluster), where they are shorter.
    #[prost(bytes = "vec", tag = "2")]
    pub delta: Vec<u8>,
}

/// Who is calling on the backing file system.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Credentials {
    /// User.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
    /// Permission bits that are cleared from modes of new files.
    #[prost(uint32, tag = "4")]
    pub umask: u32,
}

/// Opens a session.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SessionOpen {
    /// Chosen by the client, random: the same key gets the same session.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Host name, for people.
    #[prost(string, tag = "2")]
    pub host: String,
    /// Process, for people.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// Job, for accounting.
    #[prost(uint64, tag = "4")]
    pub job: u64,
    /// User whom it belongs to, where users are proven. Servers say it; a client's word is not read.
    #[prost(uint32, optional, tag = "5")]
    pub owner: Option<u32>,
}

/// A session was opened.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SessionOpenReply {
    /// Its number.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// The current tick.
    #[prost(uint64, tag = "2")]
    pub tick: u64,
    /// Without a renewal for so long the session is dead, in milliseconds.
    #[prost(uint32, tag = "3")]
    pub lease_ms: u32,
}

/// Renews or closes a session.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SessionRenew {
    /// The session.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// Every answer up to this operation has arrived: results may be forgotten.
    #[prost(uint64, tag = "2")]
    pub acknowledged: u64,
}

/// An empty answer.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// A list of blocks to free.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FreeBlocks {
    /// The blocks.
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<BlockName>,
}

/// A block: a parity group and an index in it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BlockName {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub pg: PPgId,
    /// Which of its blocks.
    #[prost(uint32, tag = "2")]
    pub index: u32,
}

/// Forbids a commit.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CancelCommit {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub pg: PPgId,
    /// Of the group's session, for writing to its file.
    #[prost(message, required, tag = "2")]
    pub capability: PCapability,
}

/// What became of a cancelled commit. After `committed` the cancel has had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CancelCommitReply {
    /// True if the commit had been applied before.
    #[prost(bool, tag = "1")]
    pub committed: bool,
}

/// Asks home what became of parity groups.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PgStatus {
    /// The groups.
    #[prost(message, repeated, tag = "1")]
    pub pgs: Vec<PPgId>,
    /// True when a member asks: home must then be able to say "unknown" for good, and moves its
    /// horizon before it does (rule 1).
    #[prost(bool, tag = "2")]
    pub settle: bool,
}

/// Home's answer, one entry per group asked.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PgStatusReply {
    /// In the order of the question.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<PgStatusEntry>,
}

/// State of one parity group at home.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PgStatusEntry {
    /// 0 = unknown for good (free it), 1 = committed (descriptor given), 2 = dead (free it),
    /// 3 = undecided (ask later).
    #[prost(uint32, tag = "1")]
    pub state: u32,
    /// Encoded [`crate::PgDescriptor`] of a committed group.
    #[prost(bytes = "vec", tag = "2")]
    pub descriptor: Vec<u8>,
}

/// Reports that a participant holds no fragment of these groups, or asks whether it holds any.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PgList {
    /// The groups.
    #[prost(message, repeated, tag = "1")]
    pub pgs: Vec<PPgId>,
    /// For `PgRelease`: the participant that reports.
    #[prost(uint32, tag = "2")]
    pub participant: u32,
}

/// Which of the groups asked about are held, in the order of the question.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PgHoldsReply {
    /// One answer per group.
    #[prost(bool, repeated, tag = "1")]
    pub held: Vec<bool>,
}

/// Asks for the fragments of a range of a region.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Lookup {
    /// Encoded permission: see [`PCapability`].
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// First offset in the file, in bytes.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Length in bytes; may not cross the region's border.
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

/// A capability inside a protocol buffer.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PCapability {
    /// Session.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// File.
    #[prost(message, required, tag = "2")]
    pub fid: PFid,
    /// Rights.
    #[prost(uint32, tag = "3")]
    pub rights: u32,
    /// Signature; zeros where users are not proven.
    #[prost(bytes = "vec", tag = "4")]
    pub signature: Vec<u8>,
}

impl From<&crate::Capability> for PCapability {
    fn from(cap: &crate::Capability) -> Self {
        Self {
            session: cap.session.0,
            fid: cap.fid.into(),
            rights: cap.rights.0,
            signature: cap.signature.to_vec(),
        }
    }
}

impl From<&PCapability> for crate::Capability {
    fn from(cap: &PCapability) -> Self {
        Self {
            session: crate::SessionId(cap.session),
            fid: cap.fid.into(),
            rights: crate::Rights(cap.rights),
            signature: cap.signature.as_slice().try_into().unwrap_or([0; 16]),
        }
    }
}

/// State of a fragment, on the wire and in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FragmentState {
    /// Only here.
    Dirty = 0,
    /// Being written to the backing file system.
    Pending = 1,
    /// The backing file system has the same bytes.
    Clean = 2,
    /// Clean, and given up: space that can be taken at any time.
    Deletable = 3,
}

/// A fragment with the group it lies in.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FragmentInfo {
    /// Offset in the file, in bytes.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Length in bytes.
    #[prost(uint32, tag = "2")]
    pub len: u32,
    /// Which entry of the reply's descriptors.
    #[prost(uint32, tag = "3")]
    pub group: u32,
    /// Offset in the group's data, in bytes.
    #[prost(uint32, tag = "4")]
    pub pg_offset: u32,
    /// State.
    #[prost(enumeration = "FragmentState", tag = "5")]
    pub state: i32,
}

/// Fragments of a range, sorted by offset.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LookupReply {
    /// The fragments, cut to the range.
    #[prost(message, repeated, tag = "1")]
    pub fragments: Vec<FragmentInfo>,
    /// Encoded [`crate::PgDescriptor`]s.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub descriptors: Vec<Vec<u8>>,
    /// The answer ends here (first offset not covered by it); ask on from here if it is less than
    /// the end of the range asked for.
    #[prost(uint64, tag = "3")]
    pub end: u64,
    /// Truncate epoch of the region.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Uncovered bytes from here on are zeros, whatever the backing file system has: a truncate is
    /// under way. `u64::MAX` where none is.
    #[prost(uint64, tag = "5")]
    pub zeros_from: u64,
    /// For each descriptor, where users are proven: what a request for the group's blocks carries
    /// in its capability in the place of the signature (16 bytes). Empty where none is needed.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub permissions: Vec<Vec<u8>>,
}

/// Asks for the bytes of an inline parity group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetInline {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// The group.
    #[prost(message, required, tag = "2")]
    pub pg: PPgId,
}

/// The file's identity on the backing file system.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Binding {
    /// UUID of the backing file system, from its marker.
    #[prost(bytes = "vec", tag = "1")]
    pub bfs: Vec<u8>,
    /// Type of the file handle.
    #[prost(int32, tag = "2")]
    pub handle_type: i32,
    /// File handle as `name_to_handle_at` gives it, at most 128 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub handle: Vec<u8>,
    /// Birth time in nanoseconds since 1970, 0 where the handle holds a generation.
    #[prost(int64, tag = "4")]
    pub birth_ns: i64,
}

/// What the backing file system had when we last looked: the guard against changes behind our back.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Guard {
    /// Size in bytes.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    #[prost(int64, tag = "2")]
    pub mtime_ns: i64,
}

/// Attributes as applications see them.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attributes {
    /// Inode number on the backing file system.
    #[prost(uint64, tag = "1")]
    pub inode: u64,
    /// Type and permissions.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Number of names.
    #[prost(uint32, tag = "3")]
    pub links: u32,
    /// Owner.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Size in bytes, with dirty data.
    #[prost(uint64, tag = "6")]
    pub size: u64,
    /// Times in nanoseconds since 1970: access.
    #[prost(int64, tag = "7")]
    pub atime_ns: i64,
    /// Modification.
    #[prost(int64, tag = "8")]
    pub mtime_ns: i64,
    /// Change.
    #[prost(int64, tag = "9")]
    pub ctime_ns: i64,
    /// Space in units of 512 bytes, on the backing file system.
    #[prost(uint64, tag = "10")]
    pub blocks: u64,
    /// Device number for special files.
    #[prost(uint64, tag = "11")]
    pub rdev: u64,
}

/// A namespace operation, to the partition of the session.
#[derive(Clone, PartialEq, Message)]
pub struct Namespace {
    /// The session.
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    /// Number within the session; a retry carries the same.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Every answer up to this operation has arrived: results may be forgotten.
    #[prost(uint64, tag = "3")]
    pub acknowledged: u64,
    /// Who asks.
    #[prost(message, required, tag = "4")]
    pub credentials: Credentials,
    /// User whom the session belongs to. Servers say it; a client's word is not read.
    #[prost(uint32, optional, tag = "5")]
    pub owner: Option<u32>,
    /// What is asked.
    #[prost(oneof = "NamespaceOp", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22")]
    pub op: Option<NamespaceOp>,
}

/// The operations. Paths are absolute within the backing file system ("/" is its root), as raw
/// bytes; no component is "..".
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum NamespaceOp {
    /// Opens, maybe creates, a file.
    #[prost(message, tag = "10")]
    Open(OpOpen),
    /// Attributes.
    #[prost(message, tag = "11")]
    Stat(OpPath),
    /// Makes a directory.
    #[prost(message, tag = "12")]
    Mkdir(OpMode),
    /// Removes an empty directory.
    #[prost(message, tag = "13")]
    Rmdir(OpPath),
    /// Removes a name.
    #[prost(message, tag = "14")]
    Unlink(OpPath),
    /// Renames, maybe over something.
    #[prost(message, tag = "15")]
    Rename(OpTwo),
    /// Lists a directory.
    #[prost(message, tag = "16")]
    Readdir(OpReaddir),
    /// Changes permissions.
    #[prost(message, tag = "17")]
    Chmod(OpMode),
    /// Truncates by path.
    #[prost(message, tag = "18")]
    Truncate(OpTruncate),
    /// Sets times.
    #[prost(message, tag = "19")]
    Utimens(OpTimes),
    /// Checks permissions as access(2) does; `mode` holds R_OK, W_OK, X_OK bits.
    #[prost(message, tag = "20")]
    Access(OpMode),
    /// Space of the backing file system and of the buffer.
    #[prost(message, tag = "21")]
    Statvfs(OpPath),
    /// Changes owner and group.
    #[prost(message, tag = "22")]
    Chown(OpChown),
}

/// Opens a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpOpen {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Flags of open(2), Linux x86-64 numbers.
    #[prost(int32, tag = "2")]
    pub flags: i32,
    /// Permissions of a new file.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
}

/// A path.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpPath {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Do not follow a symbolic link at the end.
    #[prost(bool, tag = "2")]
    pub no_follow: bool,
}

/// A path and a mode.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpMode {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// The mode.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
}

/// Two paths.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpTwo {
    /// From.
    #[prost(bytes = "vec", tag = "1")]
    pub from: Vec<u8>,
    /// To.
    #[prost(bytes = "vec", tag = "2")]
    pub to: Vec<u8>,
    /// Flags of renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE.
    #[prost(uint32, tag = "3")]
    pub flags: u32,
}

/// Lists a directory, a page at a time.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpReaddir {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Names after this one, in byte order; empty = from the start.
    #[prost(bytes = "vec", tag = "2")]
    pub after: Vec<u8>,
}

/// Truncates by path.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpTruncate {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// New size in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// Sets times by path.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpTimes {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Access time, ns since 1970; none = leave.
    #[prost(int64, optional, tag = "2")]
    pub atime_ns: Option<i64>,
    /// Modification time, ns since 1970; none = leave.
    #[prost(int64, optional, tag = "3")]
    pub mtime_ns: Option<i64>,
}

/// Changes owner and group by path.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpChown {
    /// The path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// New owner; none = leave.
    #[prost(uint32, optional, tag = "2")]
    pub uid: Option<u32>,
    /// New group; none = leave.
    #[prost(uint32, optional, tag = "3")]
    pub gid: Option<u32>,
}

/// Answer to a namespace operation. Which fields are set follows from the operation.
#[derive(Clone, PartialEq, Message)]
pub struct NamespaceReply {
    /// Attributes (open, stat, mkdir).
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<Attributes>,
    /// What the client needs for I/O (open of a regular file). For stat: which file it is, with a
    /// capability that permits nothing; numbers of inodes are given again to other files.
    #[prost(message, optional, tag = "2")]
    pub file: Option<FileHandle>,
    /// A page of a directory, in byte order of the names.
    #[prost(message, repeated, tag = "3")]
    pub entries: Vec<DirEntry>,
    /// True if the page is the last.
    #[prost(bool, tag = "4")]
    pub last: bool,
    /// Space (statvfs).
    #[prost(message, optional, tag = "5")]
    pub space: Option<Space>,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DirEntry {
    /// The name.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Inode number.
    #[prost(uint64, tag = "2")]
    pub inode: u64,
    /// Type, as in `d_type` of readdir(3).
    #[prost(uint32, tag = "3")]
    pub kind: u32,
}

/// Space of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Space {
    /// Block size in bytes.
    #[prost(uint64, tag = "1")]
    pub block_bytes: u64,
    /// Blocks in all.
    #[prost(uint64, tag = "2")]
    pub blocks: u64,
    /// Blocks free.
    #[prost(uint64, tag = "3")]
    pub free: u64,
    /// Inodes in all.
    #[prost(uint64, tag = "4")]
    pub files: u64,
    /// Inodes free.
    #[prost(uint64, tag = "5")]
    pub files_free: u64,
    /// Longest name in bytes.
    #[prost(uint32, tag = "6")]
    pub name_max: u32,
}

/// What a client needs to read and write an open file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileHandle {
    /// Permission for the data.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// log2 of the region size in bytes.
    #[prost(uint32, tag = "2")]
    pub region_log2: u32,
    /// Truncate epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Size in bytes, with dirty data.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// Number of this open at the file record; given back at close.
    #[prost(uint64, tag = "5")]
    pub open_id: u64,
    /// Runs of 1,024 regions that are registered already: number = region / 1024.
    #[prost(uint32, repeated, tag = "6")]
    pub runs: Vec<u32>,
}

/// A file is opened: from the session's partition to the file's.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileOpen {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// Its binding, which is compared as a whole.
    #[prost(message, required, tag = "2")]
    pub binding: Binding,
    /// The session it is opened for.
    #[prost(fixed64, tag = "3")]
    pub session: u64,
    /// Rights asked for (and permitted by the backing file system).
    #[prost(uint32, tag = "4")]
    pub rights: u32,
    /// What the backing file system has now.
    #[prost(message, required, tag = "5")]
    pub guard: Guard,
    /// O_TRUNC.
    #[prost(bool, tag = "6")]
    pub truncate: bool,
    /// User whom the session belongs to: the capability is good for connections of that one only.
    #[prost(uint32, optional, tag = "7")]
    pub owner: Option<u32>,
}

/// A file is closed, or its size is raised, or its name made durable.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileSize {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// Truncate epoch under which the size was reached; an old one has no effect.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Size reached, in bytes; 0 for none.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Reserve so many bytes at the end for an append; the answer says where.
    #[prost(uint64, tag = "4")]
    pub append: u64,
    /// Make inode and name durable on the backing file system (first fsync of a file).
    #[prost(bool, tag = "5")]
    pub durable_name: bool,
    /// For a close: the open.
    #[prost(uint64, tag = "6")]
    pub open_id: u64,
    /// Modification time of the application's last write, in ns since 1970; 0 for none.
    #[prost(int64, tag = "7")]
    pub mtime_ns: i64,
}

/// State of a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileState {
    /// Size in bytes, with dirty data.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Truncate epoch.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Modification time in ns since 1970 if it is known here, else 0.
    #[prost(int64, tag = "3")]
    pub mtime_ns: i64,
    /// Where an append may write.
    #[prost(uint64, tag = "4")]
    pub append_at: u64,
    /// True if the file has a record here.
    #[prost(bool, tag = "5")]
    pub known: bool,
    /// Bytes by state, if they were asked for.
    #[prost(message, optional, tag = "6")]
    pub bytes: Option<ByteCounts>,
    /// Pinned.
    #[prost(bool, tag = "7")]
    pub pinned: bool,
    /// The file changed on the backing file system while it has dirty data here.
    #[prost(bool, tag = "8")]
    pub conflict: bool,
    /// log2 of the region size in bytes.
    #[prost(uint32, tag = "9")]
    pub region_log2: u32,
    /// Runs of 1,024 regions that are registered as a whole.
    #[prost(uint32, repeated, tag = "10")]
    pub runs: Vec<u32>,
    /// Binding, for other servers.
    #[prost(message, optional, tag = "11")]
    pub binding: Option<Binding>,
    /// The newest truncate is not done on the backing file system yet.
    #[prost(bool, tag = "12")]
    pub truncating: bool,
    /// True if a client has it open, or may have (the grace after a restart is not over).
    #[prost(bool, tag = "13")]
    pub open: bool,
    /// Runs that are registered in part: for each of them the first region that is not.
    #[prost(uint32, repeated, tag = "14")]
    pub run_ends: Vec<u32>,
}

/// Bytes of a file, region or cluster by state.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ByteCounts {
    /// Only here.
    #[prost(uint64, tag = "1")]
    pub dirty: u64,
    /// Being synchronized.
    #[prost(uint64, tag = "2")]
    pub pending: u64,
    /// The same on the backing file system.
    #[prost(uint64, tag = "3")]
    pub clean: u64,
    /// Given up.
    #[prost(uint64, tag = "4")]
    pub deletable: u64,
    /// First offset behind the highest byte held.
    #[prost(uint64, tag = "5")]
    pub end: u64,
    /// Number of fragments.
    #[prost(uint64, tag = "6")]
    pub fragments: u64,
    /// Number of parity groups.
    #[prost(uint64, tag = "7")]
    pub groups: u64,
}

/// Asks for the state of a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileStat {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// Count bytes by state, too (asks every region).
    #[prost(bool, tag = "2")]
    pub counts: bool,
    /// List truncates after this epoch, too (for a region that missed some): the answer's `epoch`
    /// is the newest and its `size` the smallest of those (`u64::MAX` if there is none).
    #[prost(uint64, optional, tag = "3")]
    pub truncates_after: Option<u64>,
}

/// Registers the first regions of a run of 1,024.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileRegions {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// Number of the run: region / 1024.
    #[prost(uint32, tag = "2")]
    pub run: u32,
    /// How many of its regions, from the first, 1 to 1,024: truncate, unlink and sync ask each one
    /// that is registered, so a small file should not register them all.
    #[prost(uint32, tag = "3")]
    pub regions: u32,
}

/// Truncates a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileTruncate {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// New size in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Session and number of the operation, so that a retry is answered once.
    #[prost(fixed64, tag = "3")]
    pub session: u64,
    /// Number within the session.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
}

/// The last name of a file is gone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileDrop {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// The binding it had.
    #[prost(message, required, tag = "2")]
    pub binding: Binding,
}

/// Kinds of operations on a file's residency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Residency {
    /// Nothing; an invalid value.
    None = 0,
    /// Write dirty bytes to the backing file system.
    Sync = 1,
    /// Bring bytes from the backing file system.
    Prestage = 2,
    /// Drop clean bytes.
    Purge = 3,
    /// Drop all bytes, dirty ones too.
    PurgeDirty = 4,
    /// Exempt from the automatic engine.
    Pin = 5,
    /// End of the exemption.
    Unpin = 6,
}

/// Starts an operation on a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileOperation {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// What.
    #[prost(enumeration = "Residency", tag = "2")]
    pub residency: i32,
    /// First offset in bytes.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Length in bytes; 0 = to the end.
    #[prost(uint64, tag = "4")]
    pub len: u64,
    /// How to go on after a conflict: 0 = stop, 1 = ours wins, 2 = the backing file system's wins.
    #[prost(uint32, tag = "5")]
    pub force: u32,
    /// Session and number, so that a retry finds the operation that it started.
    #[prost(fixed64, tag = "6")]
    pub session: u64,
    /// Number within the session.
    #[prost(uint64, tag = "7")]
    pub sequence: u64,
}

/// Asks about an operation.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OperationStatus {
    /// The operation.
    #[prost(uint64, tag = "1")]
    pub op: u64,
    /// Wait for its end, for so long at the most, in milliseconds.
    #[prost(uint32, tag = "2")]
    pub wait_ms: u32,
    /// Cancel it.
    #[prost(bool, tag = "3")]
    pub cancel: bool,
}

/// Value of a [`crate::Code::Cancelled`] in an [`OperationState`] that says: whoever answers does not
/// know the operation. Its process is gone, or the role of the file's primary has moved: start it
/// again.
pub const OPERATION_UNKNOWN: u64 = 1;

/// State of an operation. Also the answer to starting one.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OperationState {
    /// The operation.
    #[prost(uint64, tag = "1")]
    pub op: u64,
    /// True when it has ended.
    #[prost(bool, tag = "2")]
    pub ended: bool,
    /// Bytes that it has to move, as far as known.
    #[prost(uint64, tag = "3")]
    pub bytes_total: u64,
    /// Bytes moved.
    #[prost(uint64, tag = "4")]
    pub bytes_done: u64,
    /// Why it failed, if it did.
    #[prost(message, optional, tag = "5")]
    pub failure: Option<crate::Failure>,
}

/// A region applies a truncate, is told that one is done, or drops a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegionTruncate {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// The region.
    #[prost(uint32, tag = "2")]
    pub region: u32,
    /// Epoch of the truncate.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// New size of the file in bytes.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// True when the backing file system has been truncated too.
    #[prost(bool, tag = "5")]
    pub done: bool,
    /// log2 of the file's region size in bytes.
    #[prost(uint32, tag = "6")]
    pub region_log2: u32,
}

/// Names a region.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RegionName {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// The region.
    #[prost(uint32, tag = "2")]
    pub region: u32,
}

/// Part of an operation, for one region.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegionOperation {
    /// The file.
    #[prost(message, required, tag = "1")]
    pub fid: PFid,
    /// The region.
    #[prost(uint32, tag = "2")]
    pub region: u32,
    /// The operation; the same id again is answered with the same result.
    #[prost(uint64, tag = "3")]
    pub op: u64,
    /// What.
    #[prost(enumeration = "Residency", tag = "4")]
    pub residency: i32,
    /// First offset in bytes.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// First offset behind the range.
    #[prost(uint64, tag = "6")]
    pub end: u64,
    /// The file on the backing file system.
    #[prost(message, required, tag = "7")]
    pub binding: Binding,
    /// Truncate epoch of the file when the operation began.
    #[prost(uint64, tag = "8")]
    pub epoch: u64,
    /// Size of the file: nothing is written or staged beyond it.
    #[prost(uint64, tag = "9")]
    pub size: u64,
    /// log2 of the file's region size in bytes.
    #[prost(uint32, tag = "10")]
    pub region_log2: u32,
    /// Cancel it.
    #[prost(bool, tag = "11")]
    pub cancel: bool,
}

/// What a region did.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegionOperationReply {
    /// Bytes moved or dropped.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Bytes of the range that are dirty again, because they changed meanwhile.
    #[prost(uint64, tag = "2")]
    pub dirty_again: u64,
}

/// Asks for bytes of the backing file system that no fragment covers.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadThrough {
    /// Permission.
    #[prost(message, required, tag = "1")]
    pub capability: PCapability,
    /// Offset in bytes.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Length in bytes, at most one payload. Bytes behind the end of the backing file are zeros.
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

/// The bytes come as payload; transports do not check that.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReadThroughReply {
    /// CRC32C of the payload.
    #[prost(fixed32, tag = "1")]
    pub crc: u32,
}

/// State of a node.
#[derive(Clone, PartialEq, Message)]
pub struct NodeStatus {
    /// Node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Epoch of its map.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Tick.
    #[prost(uint64, tag = "3")]
    pub tick: u64,
    /// Its devices.
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<DeviceStatus>,
    /// Bytes by state over the partitions whose primary it is.
    #[prost(message, required, tag = "5")]
    pub bytes: ByteCounts,
    /// Size of the commit log's ring in bytes.
    #[prost(uint64, tag = "6")]
    pub log_bytes: u64,
    /// Bytes of it in use.
    #[prost(uint64, tag = "7")]
    pub log_used_bytes: u64,
    /// Memory for metadata in bytes, as counted.
    #[prost(uint64, tag = "8")]
    pub metadata_bytes: u64,
    /// Limit of that memory.
    #[prost(uint64, tag = "9")]
    pub metadata_bytes_max: u64,
    /// Process incarnation.
    #[prost(uint64, tag = "10")]
    pub incarnation: u64,
    /// State of the backing file system: empty = well, else what is wrong.
    #[prost(string, tag = "11")]
    pub bfs_problem: String,
    /// Blocks that this process reconstructed to synchronize them; those of readers are counted by
    /// their clients.
    #[prost(uint64, tag = "12")]
    pub reconstructed_blocks: u64,
    /// Open sessions.
    #[prost(uint64, tag = "13")]
    pub sessions: u64,
    /// The node that leads the Raft group as far as this one knows; 0: it knows of none.
    #[prost(uint32, tag = "14")]
    pub leader: u32,
    /// Term of the Raft group, where this node votes; else 0.
    #[prost(uint64, tag = "15")]
    pub term: u64,
    /// Voter numbers of the Raft group's members as this node, where it votes, knows them.
    #[prost(uint64, repeated, tag = "16")]
    pub voters: Vec<u64>,
    /// It may serve as a primary now.
    #[prost(bool, tag = "17")]
    pub has_lease: bool,
    /// Its process has its place in the map.
    #[prost(bool, tag = "18")]
    pub has_joined: bool,
    /// What its replicas do.
    #[prost(message, required, tag = "19")]
    pub replicas: ReplicaCounts,
    /// Parity groups with a member whose device was given up or whose node is down, over the
    /// partitions whose primary it is; counted some seconds ago at the most.
    #[prost(uint64, tag = "20")]
    pub degraded_groups: u64,
    /// Of these, groups that miss more members than they have parity.
    #[prost(uint64, tag = "21")]
    pub unreadable_groups: u64,
    /// Parity groups of which two blocks share a node, counted at the same time.
    #[prost(uint64, tag = "22")]
    pub crowded_groups: u64,
    /// Bytes written to the commit log's device since the process began.
    #[prost(uint64, tag = "23")]
    pub log_written_bytes: u64,
    /// Flushes of it, durable writes among them.
    #[prost(uint64, tag = "24")]
    pub log_flushes: u64,
    /// Bytes read from it.
    #[prost(uint64, tag = "25")]
    pub log_read_bytes: u64,
    /// Calls on the backing file system that have ended since the process began.
    #[prost(uint64, tag = "26")]
    pub bfs_calls: u64,
    /// Time that they took, each by itself, in microseconds.
    #[prost(uint64, tag = "27")]
    pub bfs_us: u64,
}

/// Replicas of a node by what they do.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicaCounts {
    /// Primaries that serve.
    #[prost(uint32, tag = "1")]
    pub serving: u32,
    /// Primaries that take over, or give their role away.
    #[prost(uint32, tag = "2")]
    pub changing: u32,
    /// Backups.
    #[prost(uint32, tag = "3")]
    pub following: u32,
    /// Replicas that have a snapshot, and are no backups yet.
    #[prost(uint32, tag = "4")]
    pub filling: u32,
    /// Replicas that are not believed: they wait for a snapshot, or for their removal.
    #[prost(uint32, tag = "5")]
    pub absent: u32,
}

/// State of a device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeviceStatus {
    /// Its number in the map.
    #[prost(uint32, tag = "1")]
    pub device: u32,
    /// Path or address.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Usable bytes.
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    /// Bytes in blocks.
    #[prost(uint64, tag = "4")]
    pub used_bytes: u64,
    /// Freed bytes that wait for unmap.
    #[prost(uint64, tag = "5")]
    pub unmap_bytes: u64,
    /// Empty = well, else what is wrong.
    #[prost(string, tag = "6")]
    pub problem: String,
    /// Blocks held.
    #[prost(uint64, tag = "7")]
    pub blocks: u64,
    /// Bytes read since the process began.
    #[prost(uint64, tag = "8")]
    pub read_bytes: u64,
    /// Bytes written since then.
    #[prost(uint64, tag = "9")]
    pub written_bytes: u64,
    /// Flushes since then, durable writes among them.
    #[prost(uint64, tag = "10")]
    pub flushes: u64,
}
