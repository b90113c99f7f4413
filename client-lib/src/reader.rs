//! Reading: what is still here, then the fragment map, then parity groups and the backing file
//! system, all pieces in parallel.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bb_erasure::crc32c;
use bb_pgio::{Piece, ReadError, ReadOptions};
use bb_proto::meta::{self, Lookup, LookupReply, PgStatus, PgStatusReply, ReadThrough};
use bb_proto::{
    Capability, Code, Fragment, Kind, PAYLOAD_BYTES_MAX, PgBody, PgDescriptor, PgId, Reader,
    partition_of,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::ahead::Order;
use crate::cache::{Cached, Fetching, Key, SEGMENT_BYTES};
use crate::client::Inner;
use crate::error::{Error, Result};
use crate::file::File;
use crate::link::Ask;
use crate::maps::{Granted, MapPage, PAGE_BYTES};
use crate::node::Node;
use crate::ranges::subtract;

/// How often a map that turns out to be out of date is fetched again.
const STALE_TRIES: u32 = 16;
/// Groups smaller than this are fetched whole: the next read wants the rest.
const WHOLE_BYTES_MAX: u64 = 64 << 10;
/// Where a piece of a read comes from.
#[derive(Clone)]
pub(crate) enum Source {
    Group { descriptor: Rc<Granted>, pg_offset: usize },
    Backing,
    Zeros,
}

/// A piece of a read.
pub(crate) struct Plan {
    pub range: Range<u64>,
    pub source: Source,
}

/// What came for a piece.
enum Got {
    Pieces(usize, Vec<Piece>),
    Bytes(bb_runtime::BufMut),
    Zeros,
}

pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Inner {
    /// Fills `out` with the bytes of `range`, which lies within the file.
    pub async fn read(
        self: &Rc<Self>,
        file: &File,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        let node = &file.node;
        let order = self.follow(file, &range);
        // First: what leaves the overlay later is in a map that is fetched later.
        let mut holes = node.overlay(&range, out);
        let mut confirm = None;
        for attempt in 0..STALE_TRIES {
            let mut plans = Vec::new();
            for hole in &holes {
                self.plan(node, &file.opened.capability.get(), hole, &mut plans).await?;
            }
            if order == Order::None {
                self.follow_writing(file, &plans);
            }
            match self.fetch_all(file, &plans, &range, out, order, confirm.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(Failed::Stale(descriptor)) => {
                    node.maps.borrow_mut().forget();
                    if attempt > 0 {
                        // The map names it again: home knows whether it is to be believed.
                        confirm = self.ask_home(&descriptor).await?;
                        self.link.back_off(attempt).await;
                    }
                }
                Err(Failed::Session(used, error)) => {
                    if !self.renewed(&error, node, used).await {
                        return Err(error);
                    }
                }
                Err(Failed::Error(error)) => return Err(error),
            }
            holes = node.overlay(&range, out);
        }
        Err(Error::Lost("the fragment map names blocks that nobody holds".into()))
    }

    /// Where the bytes of a range are.
    pub async fn plan(
        self: &Rc<Self>,
        node: &Rc<Node>,
        capability: &Capability,
        range: &Range<u64>,
        plans: &mut Vec<Plan>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let page = self.page(node, capability, at).await?;
            let part = at..range.end.min(page.range.end);
            let mut gaps: Vec<Range<u64>> = std::iter::once(part.clone()).collect();
            let first = page.fragments.partition_point(|(f, _)| f.end() <= part.start);
            for (fragment, descriptor) in &page.fragments[first..] {
                if fragment.offset >= part.end {
                    break;
                }
                let both = fragment.offset.max(part.start)..fragment.end().min(part.end);
                subtract(&mut gaps, &both);
                let pg_offset = fragment.pg_offset as usize + index(both.start - fragment.offset);
                if !plans
                    .last_mut()
                    .is_some_and(|last| continue_with(last, &both, descriptor, pg_offset))
                {
                    let descriptor = descriptor.clone();
                    plans.push(Plan {
                        range: both,
                        source: Source::Group { descriptor, pg_offset },
                    });
                }
            }
            for gap in gaps {
                let cut = gap.end.min(page.zeros_from.max(gap.start));
                let mut from = gap.start;
                while from < cut {
                    let to = cut.min(from + u64::from(PAYLOAD_BYTES_MAX));
                    plans.push(Plan { range: from..to, source: Source::Backing });
                    from = to;
                }
                if cut < gap.end {
                    plans.push(Plan { range: cut..gap.end, source: Source::Zeros });
                }
            }
            at = part.end;
        }
        Ok(())
    }

    /// The page of the fragment map that holds `at`.
    async fn page(
        self: &Rc<Self>,
        node: &Rc<Node>,
        capability: &Capability,
        at: u64,
    ) -> Result<Rc<MapPage>> {
        let start = at & !(PAGE_BYTES.min(1 << node.region_log2) - 1);
        let end = start.saturating_add(PAGE_BYTES.min(1 << node.region_log2));
        let now = self.rt().now();
        if let Some(page) = node.maps.borrow().get(start, now, self.options.map_age_max) {
            return Ok(page);
        }
        let generation = node.maps.borrow().generation();
        let mut page = MapPage {
            range: start..end,
            fragments: Vec::new(),
            zeros_from: u64::MAX,
            fetched: now,
        };
        let partition =
            partition_of(node.fid, node.region_of(start), self.link.map().partition_count());
        let mut from = start;
        while from < end {
            // Another session's capability may have come since the read began.
            let capability = self.capability_of(node, capability);
            let body = Lookup { capability: (&capability).into(), offset: from, len: end - from };
            let ask = Ask::new(Kind::Lookup, meta::encode(&body));
            let answer = match self.link.ask(partition, &ask).await {
                Ok(answer) => answer,
                Err(error) if self.renewed(&error, node, capability.session).await => continue,
                Err(error) => return Err(error),
            };
            let reply: LookupReply = meta::decode(&answer.body)?;
            from = add_reply(&mut page, &reply, from)?;
        }
        let page = Rc::new(page);
        node.maps.borrow_mut().put(&page, generation);
        Ok(page)
    }

    /// The newest capability of the file with the same rights.
    pub fn capability_of(&self, node: &Node, old: &Capability) -> Capability {
        let session = self.session.id();
        let fits = |c: &Capability| c.session == session && c.rights.allows(old.rights);
        node.opens.borrow().iter().map(|o| o.capability.get()).find(fits).unwrap_or(*old)
    }

    async fn fetch_all(
        self: &Rc<Self>,
        file: &File,
        plans: &[Plan],
        range: &Range<u64>,
        out: &mut [u8],
        order: Order,
        confirmed: Option<&PgDescriptor>,
    ) -> std::result::Result<(), Failed> {
        // Several pieces of one group, as of a file in small writes, come in whole segments: once.
        let mut pieces: BTreeMap<PgId, u32> = BTreeMap::new();
        for plan in plans {
            if let Source::Group { descriptor, .. } = &plan.source {
                *pieces.entry(descriptor.pg).or_default() += 1;
            }
        }
        let many = |plan: &Plan| match &plan.source {
            Source::Group { descriptor, .. } => pieces[&descriptor.pg] > 1,
            Source::Backing | Source::Zeros => false,
        };
        let mut parts = Vec::with_capacity(plans.len());
        for plan in plans {
            let order = if many(plan) { Order::Sequential } else { order };
            #[cfg(feature = "planted")]
            if self.planted(crate::Planted::HoldAndWait) {
                let (range, source) = (plan.range.clone(), plan.source.clone());
                parts.push((Plan { range, source }, order));
                continue;
            }
            split(plan, order, &mut parts);
        }
        let get = |(plan, order): (Plan, Order)| async move {
            let permit = self.reading.acquire(self.share_of(&plan, order)).await;
            let got = self.fetch_one(file, &plan, order, confirmed).await;
            (plan, order, permit, got)
        };
        let mut gets: FuturesUnordered<_> = parts.into_iter().map(get).collect();
        while let Some((plan, order, _permit, got)) = gets.next().await {
            let to = &mut out[index(plan.range.start - range.start)..]
                [..index(plan.range.end - plan.range.start)];
            match got? {
                Got::Zeros => to.fill(0),
                Got::Bytes(bytes) => {
                    let have = bytes.len().min(to.len());
                    to[..have].copy_from_slice(&bytes[..have]);
                    to[have..].fill(0);
                }
                Got::Pieces(pg_offset, pieces) => {
                    copy_pieces(pg_offset, &pieces, to);
                    if self.cache.is_stream(file.node.size()) {
                        self.took(&plan, order);
                    }
                }
            }
        }
        Ok(())
    }

    /// A part of a stream was read.
    fn took(&self, plan: &Plan, order: Order) {
        let Source::Group { descriptor, pg_offset } = &plan.source else { return };
        let len = index(plan.range.end - plan.range.start);
        if order == Order::Strided {
            self.cache.took(Key::new(descriptor.pg, *pg_offset, len), len);
        }
        for key in segments(descriptor, *pg_offset, len) {
            let (from, end) = (key.from().max(*pg_offset), key.range().end.min(pg_offset + len));
            self.cache.took(key, end - from);
        }
    }

    /// Memory that a piece may take: whole segments on both ends, or the one that it lies in.
    fn share_of(&self, plan: &Plan, order: Order) -> u64 {
        #[cfg(feature = "planted")]
        if self.planted(crate::Planted::HoldAndWait) {
            return 0;
        }
        if order == Order::Sequential && matches!(plan.source, Source::Group { .. }) {
            return SEGMENT_BYTES as u64;
        }
        let len = plan.range.end - plan.range.start;
        (len + 2 * SEGMENT_BYTES as u64).min(self.reading_bytes_max)
    }

    async fn fetch_one(
        self: &Rc<Self>,
        file: &File,
        plan: &Plan,
        order: Order,
        confirmed: Option<&PgDescriptor>,
    ) -> std::result::Result<Got, Failed> {
        let len = index(plan.range.end - plan.range.start);
        match &plan.source {
            Source::Zeros => Ok(Got::Zeros),
            Source::Backing => self.read_through(file, &plan.range).await.map(Got::Bytes),
            Source::Group { descriptor, pg_offset } => {
                let trusted = confirmed.filter(|c| c.pg == descriptor.pg);
                let options = ReadOptions { stale_is_missing: trusted.is_some() };
                let capability = self.capability_of(&file.node, &file.opened.capability.get());
                let capability = descriptor.capability(&capability);
                let descriptor = trusted.unwrap_or(&descriptor.descriptor);
                let small = descriptor.data_bytes() <= WHOLE_BYTES_MAX;
                let order = if small { Order::Sequential } else { order };
                let pieces = self
                    .group(&capability, descriptor, *pg_offset, len, options, order)
                    .await
                    .map_err(|error| Failed::of(error, descriptor, capability.session))?;
                Ok(Got::Pieces(*pg_offset, pieces))
            }
        }
    }

    /// Bytes of a group: from the cache, else fetched, as the order of reads wants it.
    async fn group(
        self: &Rc<Self>,
        capability: &Capability,
        descriptor: &PgDescriptor,
        pg_offset: usize,
        len: usize,
        options: ReadOptions,
        order: Order,
    ) -> std::result::Result<Vec<Piece>, ReadError> {
        let segments = segments(descriptor, pg_offset, len);
        let here: Option<Vec<_>> = segments.clone().map(|key| self.cache.peek(key)).collect();
        if let Some(here) = here {
            return Ok(here.iter().flat_map(|pieces| pieces.iter().cloned()).collect());
        }
        // Of a large read without order, pieces would be held while others are waited for.
        let one = order == Order::Strided || segments.clone().nth(1).is_none();
        let coming = || one && segments.clone().all(|key| self.cache.knows(key));
        if order == Order::Sequential || coming() {
            let get = |key| self.kept(capability, descriptor, key, options);
            let mut gets: FuturesUnordered<_> = segments.map(get).collect();
            let mut pieces = Vec::new();
            while let Some(got) = gets.next().await {
                pieces.extend(got?.iter().cloned());
            }
            return Ok(pieces);
        }
        let key = Key::new(descriptor.pg, pg_offset, len);
        if order == Order::Strided {
            let pieces = self.kept(capability, descriptor, key, options).await?;
            return Ok(pieces.iter().cloned().collect());
        }
        let (pieces, _) = self.io.fetch(capability, descriptor, pg_offset, len, options).await?;
        Ok(pieces)
    }

    /// A piece of a group: kept, on its way already, or fetched and kept.
    pub async fn kept(
        self: &Rc<Self>,
        capability: &Capability,
        descriptor: &PgDescriptor,
        key: Key,
        options: ReadOptions,
    ) -> std::result::Result<Rc<Vec<Piece>>, ReadError> {
        let fetching = loop {
            match self.cache.get(key) {
                Cached::Here(pieces) => return Ok(pieces),
                Cached::Coming(notify) => notify.notified().await,
                Cached::Fetch(fetching) => break fetching,
            }
        };
        if key.is_segment() && self.has_room_for_all(descriptor) && self.io.lacks_data(descriptor) {
            return self.kept_across(capability, descriptor, key, fetching, options).await;
        }
        let (pieces, _) =
            self.io.fetch(capability, descriptor, key.from(), key.len(), options).await?;
        let pieces = Rc::new(pieces);
        fetching.done(&pieces);
        Ok(pieces)
    }

    /// True if segments lie in one block each, and memory for those of all blocks can be had several
    /// times over: nobody who waits for memory holds any, but who takes more than he must may keep
    /// them waiting.
    fn has_room_for_all(&self, descriptor: &PgDescriptor) -> bool {
        let PgBody::Blocks { block_log2, members, .. } = &descriptor.body else { return false };
        let stats = self.link.pool().stats();
        let free = stats.total_bytes.saturating_sub(stats.used_bytes);
        1_usize.checked_shl(u32::from(*block_log2)).is_some_and(|block| block >= SEGMENT_BYTES)
            && free / 4 >= (members.len() * SEGMENT_BYTES) as u64
    }

    /// A segment of a group in which a data block is out of reach: with those beside it in the other
    /// blocks, which it takes to compute the one that is missing, and which are wanted as well by who
    /// reads in order. So each is fetched once.
    async fn kept_across(
        self: &Rc<Self>,
        capability: &Capability,
        descriptor: &PgDescriptor,
        key: Key,
        fetching: Fetching,
        options: ReadOptions,
    ) -> std::result::Result<Rc<Vec<Piece>>, ReadError> {
        let PgBody::Blocks { data, block_log2, .. } = descriptor.body else {
            return Err(ReadError::Descriptor("not in blocks".into()));
        };
        let inside = key.from() % (1 << block_log2);
        let others = (0..usize::from(data))
            .map(|index| Key::new(descriptor.pg, (index << block_log2) + inside, key.len()))
            .filter(|other| *other != key && !self.cache.was_read(*other));
        let mut claimed: Vec<(Key, Fetching)> = others
            .filter_map(|other| match self.cache.get(other) {
                Cached::Fetch(fetching) => Some((other, fetching)),
                Cached::Here(_) | Cached::Coming(_) => None,
            })
            .collect();
        claimed.push((key, fetching));
        let row = self.io.fetch_across(capability, descriptor, key.from(), key.len(), options);
        let mut row = row.await?;
        let mut mine = Rc::default();
        for (key, fetching) in claimed {
            let Some(at) = row.iter().position(|piece| piece.pg_offset == key.from()) else {
                continue;
            };
            mine = Rc::new(vec![row.swap_remove(at)]);
            fetching.done(&mine);
        }
        Ok(mine)
    }

    /// Bytes that no fragment covers.
    async fn read_through(
        self: &Rc<Self>,
        file: &File,
        range: &Range<u64>,
    ) -> std::result::Result<bb_runtime::BufMut, Failed> {
        let capability = self.capability_of(&file.node, &file.opened.capability.get());
        let len = u32::try_from(range.end - range.start).unwrap_or(PAYLOAD_BYTES_MAX);
        let body = ReadThrough { capability: (&capability).into(), offset: range.start, len };
        let mut ask = Ask::new(Kind::ReadThrough, meta::encode(&body));
        ask.sink_bytes = len as usize;
        let region = file.node.region_of(range.start);
        let partition = partition_of(file.node.fid, region, self.link.map().partition_count());
        let give_up = self.link.give_up();
        for attempt in 0.. {
            let answer = self.link.ask(partition, &ask).await.map_err(|error| {
                if error.is(Code::NoSession) {
                    Failed::Session(capability.session, error)
                } else {
                    Failed::Error(error)
                }
            })?;
            let payload = answer.payload;
            let payload =
                payload.ok_or_else(|| Failed::Error(Error::Protocol("no payload".into())))?;
            let reply: meta::ReadThroughReply =
                meta::decode(&answer.body).map_err(|failure| Failed::Error(failure.into()))?;
            // Unlike blocks, these bytes have no checksum but this one.
            if reply.crc == crc32c(&payload) {
                return Ok(payload);
            }
            tracing::warn!(host = %self.options.host, "bytes were damaged on their way");
            if self.rt().now() >= give_up {
                break;
            }
            self.link.back_off(attempt).await;
        }
        Err(Failed::Error(Error::Lost("the network damages what it carries".into())))
    }

    /// The descriptor as home has it, if the group is committed; else the next map will not name it.
    async fn ask_home(self: &Rc<Self>, stale: &PgDescriptor) -> Result<Option<PgDescriptor>> {
        let body = PgStatus { pgs: vec![stale.pg.into()], settle: false };
        let ask = Ask::new(Kind::PgStatus, meta::encode(&body));
        let answer = self.link.ask(stale.pg.home, &ask).await?;
        let reply: PgStatusReply = meta::decode(&answer.body)?;
        match reply.entries.first() {
            Some(entry) if entry.state == 1 => decode_descriptor(&entry.descriptor).map(Some),
            _ => Ok(None),
        }
    }
}

/// True if a piece goes on where the last one ends, in the file and in its group: one piece, that a
/// border of pages of the map has cut. The last one then covers it, too.
fn continue_with(last: &mut Plan, range: &Range<u64>, group: &Granted, pg_offset: usize) -> bool {
    let Plan { range: before, source } = last;
    let Source::Group { descriptor, pg_offset: from } = source else { return false };
    let end = *from + index(before.end - before.start);
    let goes_on = before.end == range.start && descriptor.pg == group.pg && end == pg_offset;
    if goes_on {
        before.end = range.end;
    }
    goes_on
}

/// The segments that hold a range of a group's data.
pub(crate) fn segments(
    descriptor: &PgDescriptor,
    pg_offset: usize,
    len: usize,
) -> impl Iterator<Item = Key> + Clone + use<> {
    let (pg, data_bytes) = (descriptor.pg, index(descriptor.data_bytes()));
    (pg_offset / SEGMENT_BYTES..(pg_offset + len).div_ceil(SEGMENT_BYTES))
        .map(move |segment| Key::segment(pg, segment * SEGMENT_BYTES, data_bytes))
}

/// Adds a piece; one that comes in whole segments as one for each, so that none of them is held
/// while another is waited for: its memory may be what that other one waits for (rule 14).
fn split(plan: &Plan, order: Order, parts: &mut Vec<(Plan, Order)>) {
    let (mut at, end) = (plan.range.start, plan.range.end);
    match &plan.source {
        Source::Group { descriptor, pg_offset } if order == Order::Sequential => {
            let mut pg_offset = *pg_offset;
            while at < end {
                let left = (SEGMENT_BYTES - pg_offset % SEGMENT_BYTES) as u64;
                let next = end.min(at + left);
                let source = Source::Group { descriptor: descriptor.clone(), pg_offset };
                parts.push((Plan { range: at..next, source }, order));
                pg_offset += index(next - at);
                at = next;
            }
        }
        source => parts.push((Plan { range: at..end, source: source.clone() }, order)),
    }
}

/// Why a piece did not come.
enum Failed {
    Stale(Box<PgDescriptor>),
    Session(bb_proto::SessionId, Error),
    Error(Error),
}

impl Failed {
    fn of(error: ReadError, descriptor: &PgDescriptor, used: bb_proto::SessionId) -> Self {
        match error {
            ReadError::Stale => Self::Stale(Box::new(descriptor.clone())),
            ReadError::Refused(failure) if failure.kind() == Code::NoSession => {
                Self::Session(used, failure.into())
            }
            other => Self::Error(other.into()),
        }
    }
}

fn copy_pieces(pg_offset: usize, pieces: &[Piece], to: &mut [u8]) {
    for piece in pieces {
        let from = piece.pg_offset.max(pg_offset);
        let end = (piece.pg_offset + piece.bytes.len()).min(pg_offset + to.len());
        if from < end {
            let bytes = &piece.bytes[from - piece.pg_offset..end - piece.pg_offset];
            to[from - pg_offset..end - pg_offset].copy_from_slice(bytes);
        }
    }
}

fn decode_descriptor(bytes: &[u8]) -> Result<PgDescriptor> {
    let mut reader = Reader::new(bytes);
    let descriptor = PgDescriptor::decode(&mut reader);
    descriptor.map_err(|error| Error::Protocol(error.to_string()))
}

/// Adds an answer to a page; where to ask on.
fn add_reply(page: &mut MapPage, reply: &LookupReply, from: u64) -> Result<u64> {
    let bad = |what: &str| Error::Protocol(format!("fragment map: {what}"));
    if reply.end <= from {
        return Err(bad("no progress"));
    }
    let mut descriptors = Vec::with_capacity(reply.descriptors.len());
    for (number, bytes) in reply.descriptors.iter().enumerate() {
        let permission = reply.permissions.get(number).and_then(|p| p.as_slice().try_into().ok());
        let descriptor = decode_descriptor(bytes)?;
        descriptors.push(Rc::new(Granted { descriptor, permission }));
    }
    for info in &reply.fragments {
        let group = descriptors.get(info.group as usize).ok_or_else(|| bad("no such group"))?;
        let fragment = Fragment { offset: info.offset, pg_offset: info.pg_offset, len: info.len };
        let room = u64::from(info.pg_offset) + u64::from(info.len) <= group.data_bytes();
        let sorted = page.fragments.last().is_none_or(|(last, _)| last.end() <= info.offset);
        if !room || !sorted || info.len == 0 || fragment.offset < from {
            return Err(bad("impossible fragment"));
        }
        page.fragments.push((fragment, group.clone()));
    }
    page.zeros_from = page.zeros_from.min(reply.zeros_from);
    Ok(reply.end)
}
