//! Groups in memory: how they are filled, and how one that was read is checked.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::format::{
    BLOCK, ExternalEntry, GROUP_MAGIC, GroupHeader, RecordHeader, RecordType, VERSION,
    framed_bytes, le32, size,
};
use crate::ids::{LogIdentity, Lsn, StreamId};

/// Appends a record to a group's bytes.
pub(crate) fn push_record(
    bytes: &mut Vec<u8>,
    record_type: RecordType,
    stream: StreamId,
    parts: [&[u8]; 2],
) {
    let at = bytes.len();
    let payload_bytes = parts[0].len() + parts[1].len();
    let mut header = RecordHeader {
        payload_bytes: le32(payload_bytes),
        record_type: record_type as u8,
        reserved: [0; 3],
        stream: U64::new(stream.0),
        crc: U32::ZERO,
        reserved_2: U32::ZERO,
    };
    let crc = crc32c::crc32c(header.as_bytes());
    let crc = crc32c::crc32c_append(crc, parts[0]);
    header.crc = U32::new(crc32c::crc32c_append(crc, parts[1]));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(parts[0]);
    bytes.extend_from_slice(parts[1]);
    bytes.resize(at + framed_bytes(payload_bytes), 0);
}

/// What a group's header says besides its sizes; filled in when it is submitted.
pub(crate) struct Stamp<'a> {
    pub(crate) identity: &'a LogIdentity,
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    pub(crate) lsn: u64,
    pub(crate) durable_through: u64,
    pub(crate) trim: u64,
    pub(crate) span_bytes: usize,
    pub(crate) record_count: u32,
    pub(crate) previous_crc: u32,
    /// Pairs that the header area has room for.
    pub(crate) external_slots: usize,
}

/// Bytes of header and external entries.
pub(crate) const fn header_bytes(external_slots: usize) -> usize {
    size_of::<GroupHeader>() + external_slots * size_of::<ExternalEntry>()
}

/// Writes the header into `group`, whose records end at `filled`; zeroes the rest. Returns the
/// header's CRC, to which the next group refers.
pub(crate) fn seal(
    group: &mut [u8],
    filled: usize,
    stamp: &Stamp<'_>,
    externals: impl Iterator<Item = (u64, u64)>,
) -> u32 {
    let head = header_bytes(stamp.external_slots);
    group[filled..].fill(0);
    let entries =
        group[size_of::<GroupHeader>()..head].chunks_exact_mut(size_of::<ExternalEntry>());
    let mut external_count = 0;
    for (place, (tag, through)) in entries.zip(externals) {
        let entry = ExternalEntry { tag: U64::new(tag), through: U64::new(through) };
        place.copy_from_slice(entry.as_bytes());
        external_count += 1;
    }
    assert_eq!(external_count, stamp.external_slots, "one pair for each place kept for one");
    let mut header = GroupHeader {
        magic: GROUP_MAGIC,
        version: U32::new(VERSION),
        header_bytes: U16::new(u16::try_from(head).expect("fits the first block")),
        external_count: U16::new(external_count.try_into().expect("a few dozen")),
        log_uuid: stamp.identity.log.0,
        nonce: U64::new(stamp.identity.nonce.0),
        incarnation: U64::new(stamp.incarnation),
        sequence: U64::new(stamp.sequence),
        lsn: U64::new(stamp.lsn),
        durable_through: U64::new(stamp.durable_through),
        trim: U64::new(stamp.trim),
        span_bytes: le32(stamp.span_bytes),
        written_bytes: le32(group.len()),
        payload_bytes: le32(filled - head),
        record_count: U32::new(stamp.record_count),
        previous_crc: U32::new(stamp.previous_crc),
        payload_crc: U32::new(crc32c::crc32c(&group[head..filled])),
        header_crc: U32::ZERO,
        reserved: [0; 20],
    };
    let crc = crc32c::crc32c(header.as_bytes());
    let crc = crc32c::crc32c_append(crc, &group[size_of::<GroupHeader>()..head]);
    header.header_crc = U32::new(crc);
    group[..size_of::<GroupHeader>()].copy_from_slice(header.as_bytes());
    crc
}

/// A header that was read and verified by itself.
#[derive(Clone, Debug)]
pub(crate) struct GroupInfo {
    pub(crate) lsn: u64,
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    pub(crate) durable_through: u64,
    pub(crate) trim: u64,
    pub(crate) header_bytes: usize,
    pub(crate) span_bytes: usize,
    pub(crate) written_bytes: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) record_count: u32,
    pub(crate) previous_crc: u32,
    pub(crate) payload_crc: u32,
    pub(crate) header_crc: u32,
    pub(crate) externals: Vec<(u64, u64)>,
}

/// Why something is not the group that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotAGroup {
    NoMagic,
    Newer(u32),
    Header(&'static str),
    Payload,
    Chain,
}

impl NotAGroup {
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::NoMagic => "no group header".to_owned(),
            Self::Newer(version) => format!("group of format version {version}"),
            Self::Header(what) => format!("group header: {what}"),
            Self::Payload => "the group's records do not match their checksum".to_owned(),
            Self::Chain => "a group of an earlier incarnation or lap".to_owned(),
        }
    }
}

/// Checks the header in `block` (4 KiB) against what the log at `lsn` may look like; at any
/// position where that is `None`.
pub(crate) fn parse_header(
    block: &[u8],
    identity: &LogIdentity,
    lsn: Option<u64>,
    group_bytes_max: usize,
) -> Result<GroupInfo, NotAGroup> {
    let (header, _) =
        GroupHeader::read_from_prefix(block).map_err(|_| NotAGroup::Header("too short"))?;
    if header.magic != GROUP_MAGIC {
        return Err(NotAGroup::NoMagic);
    }
    if header.version.get() > VERSION {
        return Err(NotAGroup::Newer(header.version.get()));
    }
    let head = usize::from(header.header_bytes.get());
    let external_count = usize::from(header.external_count.get());
    if head != header_bytes(external_count) || head > block.len() {
        return Err(NotAGroup::Header("sizes"));
    }
    let entries = &block[size_of::<GroupHeader>()..head];
    let mut unsigned = header;
    unsigned.header_crc = U32::ZERO;
    let crc = crc32c::crc32c_append(crc32c::crc32c(unsigned.as_bytes()), entries);
    if crc != header.header_crc.get() {
        return Err(NotAGroup::Header("checksum"));
    }
    if header.log_uuid != identity.log.0 || header.nonce.get() != identity.nonce.0 {
        return Err(NotAGroup::Header("of another log"));
    }
    if lsn.is_some_and(|lsn| header.lsn.get() != lsn) {
        return Err(NotAGroup::Header("of another position"));
    }
    let written = size(header.written_bytes);
    let payload = size(header.payload_bytes);
    let span = size(header.span_bytes);
    let whole = written.is_multiple_of(BLOCK) && span.is_multiple_of(BLOCK);
    if !whole || head + payload > written || written > span || written > group_bytes_max {
        return Err(NotAGroup::Header("sizes"));
    }
    let externals = entries
        .chunks_exact(size_of::<ExternalEntry>())
        .filter_map(|entry| ExternalEntry::read_from_bytes(entry).ok())
        .map(|entry| (entry.tag.get(), entry.through.get()))
        .collect();
    Ok(GroupInfo {
        lsn: header.lsn.get(),
        incarnation: header.incarnation.get(),
        sequence: header.sequence.get(),
        durable_through: header.durable_through.get(),
        trim: header.trim.get(),
        header_bytes: head,
        span_bytes: span,
        written_bytes: written,
        payload_bytes: payload,
        record_count: header.record_count.get(),
        previous_crc: header.previous_crc.get(),
        payload_crc: header.payload_crc.get(),
        header_crc: header.header_crc.get(),
        externals,
    })
}

impl GroupInfo {
    /// Where the next group begins.
    pub(crate) fn end(&self) -> u64 {
        self.lsn + self.span_bytes as u64
    }

    /// The records' bytes, if they are what was written.
    pub(crate) fn payload<'a>(&self, group: &'a [u8]) -> Result<&'a [u8], NotAGroup> {
        let payload = &group[self.header_bytes..self.header_bytes + self.payload_bytes];
        if crc32c::crc32c(payload) == self.payload_crc {
            Ok(payload)
        } else {
            Err(NotAGroup::Payload)
        }
    }

    /// LSN of the record at `offset` of the payload.
    pub(crate) fn record_lsn(&self, offset: usize) -> Lsn {
        Lsn(self.lsn + (self.header_bytes + offset) as u64)
    }

    /// Whether this group was written right after one with these marks.
    pub(crate) fn follows(&self, link: &Link) -> bool {
        self.previous_crc == link.crc
            && self.sequence == link.sequence
            && self.incarnation >= link.incarnation
    }

    /// What the next group must refer to.
    pub(crate) fn link(&self) -> Link {
        Link {
            crc: self.header_crc,
            sequence: self.sequence.saturating_add(1),
            incarnation: self.incarnation,
        }
    }
}

/// What a group must say to follow the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) crc: u32,
    pub(crate) sequence: u64,
    /// At least this one.
    pub(crate) incarnation: u64,
}

/// A record inside a verified group.
pub(crate) struct RecordView<'a> {
    pub(crate) lsn: Lsn,
    pub(crate) record_type: RecordType,
    pub(crate) stream: StreamId,
    pub(crate) body: &'a [u8],
}

/// Walks over the records of a payload.
pub(crate) struct Records<'a> {
    info: &'a GroupInfo,
    payload: &'a [u8],
    at: usize,
    /// Off only for the planted error that trusts torn records.
    check: bool,
}

impl<'a> Records<'a> {
    pub(crate) fn new(info: &'a GroupInfo, payload: &'a [u8]) -> Self {
        Self { info, payload, at: 0, check: true }
    }

    #[cfg(feature = "planted")]
    pub(crate) fn unchecked(info: &'a GroupInfo, payload: &'a [u8]) -> Self {
        Self { info, payload, at: 0, check: false }
    }

    fn take(&mut self) -> Result<RecordView<'a>, &'static str> {
        let rest = &self.payload[self.at..];
        let (header, after) =
            RecordHeader::read_from_prefix(rest).map_err(|_| "a record header is cut off")?;
        let body =
            after.get(..size(header.payload_bytes)).ok_or("a record is longer than its group")?;
        let mut unsigned = header;
        unsigned.crc = U32::ZERO;
        let crc = crc32c::crc32c_append(crc32c::crc32c(unsigned.as_bytes()), body);
        if self.check && crc != header.crc.get() {
            return Err("a record does not match its checksum");
        }
        let record_type =
            RecordType::from_number(header.record_type).ok_or("a record of unknown type")?;
        let lsn = self.info.record_lsn(self.at);
        self.at = (self.at + framed_bytes(body.len())).min(self.payload.len());
        Ok(RecordView { lsn, record_type, stream: StreamId(header.stream.get()), body })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.payload.len() {
            return None;
        }
        let taken = self.take();
        if taken.is_err() {
            self.at = self.payload.len();
        }
        Some(taken)
    }
}
