//! An in-memory POSIX tree: inodes with generations, permissions, times, and what is durable.

use std::collections::BTreeMap;

use bb_proto::meta::{Attributes, Binding, Credentials, DirEntry};
use bb_server::bfs::{BfsError, DirPage, Found, OWN_DIRECTORY, Times};

/// Links that one lookup follows at most.
const LINKS_MAX: usize = 40;
const ROOT: u64 = 1;
const READ: u32 = 4;
const WRITE: u32 = 2;
const SEARCH: u32 = 1;

type Answer<T> = Result<T, BfsError>;

fn err<T>(errno: i32) -> Answer<T> {
    Err(BfsError::Errno(errno))
}

#[derive(Clone, Debug)]
enum Kind {
    File { data: Vec<u8>, durable: Option<Vec<u8>>, name_durable: bool },
    Dir(BTreeMap<Vec<u8>, u64>),
    Link(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Inode {
    generation: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    kind: Kind,
    atime_ns: i64,
    mtime_ns: i64,
    ctime_ns: i64,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    uuid: [u8; 16],
    inodes: BTreeMap<u64, Inode>,
    generation: u32,
    /// Names in our own directory: not a part of the tree that paths can reach.
    hidden: BTreeMap<String, u64>,
    pub capacity_bytes: u64,
    pub now_ns: i64,
}

/// Where a path leads: the directory, the name in it, and what is there.
struct Place {
    dir: u64,
    name: Vec<u8>,
    inode: Option<u64>,
}

impl Tree {
    pub(super) fn new(uuid: [u8; 16]) -> Self {
        let root = Inode {
            generation: 1,
            mode: libc::S_IFDIR | 0o777,
            uid: 0,
            gid: 0,
            links: 2,
            kind: Kind::Dir(BTreeMap::new()),
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        };
        Self {
            uuid,
            inodes: BTreeMap::from([(ROOT, root)]),
            generation: 1,
            hidden: BTreeMap::new(),
            capacity_bytes: u64::MAX,
            now_ns: 0,
        }
    }

    fn node(&self, inode: u64) -> &Inode {
        &self.inodes[&inode]
    }

    fn node_mut(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("names lead to inodes that exist")
    }

    fn entries(&self, dir: u64) -> Answer<&BTreeMap<Vec<u8>, u64>> {
        match &self.node(dir).kind {
            Kind::Dir(entries) => Ok(entries),
            _ => err(libc::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> &mut BTreeMap<Vec<u8>, u64> {
        let now = self.now_ns;
        let node = self.node_mut(dir);
        (node.mtime_ns, node.ctime_ns) = (now, now);
        match &mut node.kind {
            Kind::Dir(entries) => entries,
            _ => unreachable!("checked by the lookup"),
        }
    }

    fn may(&self, caller: &Credentials, inode: u64, wanted: u32) -> Answer<()> {
        let node = self.node(inode);
        let shift = if caller.uid == node.uid {
            6
        } else if caller.gid == node.gid || caller.groups.contains(&node.gid) {
            3
        } else {
            0
        };
        let allowed = if caller.uid == 0 {
            let any_execute = node.mode & 0o111 != 0 || matches!(node.kind, Kind::Dir(_));
            READ | WRITE | if any_execute { SEARCH } else { 0 }
        } else {
            node.mode >> shift & 7
        };
        if wanted & !allowed == 0 { Ok(()) } else { err(libc::EACCES) }
    }

    /// Walks to the last component; that one is followed too if `follow`.
    fn walk(&self, caller: &Credentials, path: &[u8], follow: bool) -> Answer<Place> {
        let mut left: Vec<Vec<u8>> = split(path);
        if left.iter().any(|part| part == b"..") {
            return err(libc::EINVAL);
        }
        left.reverse();
        let mut stack = vec![ROOT];
        let mut place = Place { dir: ROOT, name: Vec::new(), inode: Some(ROOT) };
        let mut links = 0;
        while let Some(part) = left.pop() {
            let dir = *stack.last().unwrap_or(&ROOT);
            let entries = self.entries(dir)?;
            self.may(caller, dir, SEARCH)?;
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                let here = *stack.last().unwrap_or(&ROOT);
                place = Place { dir: here, name: Vec::new(), inode: Some(here) };
                continue;
            }
            let last = left.is_empty();
            let Some(&inode) = entries.get(&part) else {
                if last {
                    return Ok(Place { dir, name: part, inode: None });
                }
                return err(libc::ENOENT);
            };
            match &self.node(inode).kind {
                Kind::Link(target) if follow || !last => {
                    links += 1;
                    if links > LINKS_MAX {
                        return err(libc::ELOOP);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    left.extend(split(target).into_iter().rev());
                    let here = *stack.last().unwrap_or(&ROOT);
                    place = Place { dir: here, name: Vec::new(), inode: Some(here) };
                }
                Kind::Dir(_) => {
                    place = Place { dir, name: part, inode: Some(inode) };
                    stack.push(inode);
                }
                _ if last => place = Place { dir, name: part, inode: Some(inode) },
                _ => return err(libc::ENOTDIR),
            }
        }
        Ok(place)
    }

    /// A place whose name is to change.
    fn walk_to_change(&self, caller: &Credentials, path: &[u8], of_root: i32) -> Answer<Place> {
        let place = self.walk(caller, path, false)?;
        if place.name.is_empty() {
            return err(of_root);
        }
        if place.dir == ROOT && place.name == OWN_DIRECTORY.as_bytes() {
            return err(libc::EACCES);
        }
        Ok(place)
    }

    fn existing(&self, caller: &Credentials, path: &[u8], follow: bool) -> Answer<u64> {
        self.walk(caller, path, follow)?.inode.ok_or(BfsError::Errno(libc::ENOENT))
    }

    fn attributes(&self, inode: u64) -> Attributes {
        let node = self.node(inode);
        let size = match &node.kind {
            Kind::File { data, .. } => data.len() as u64,
            Kind::Dir(_) => 4096,
            Kind::Link(target) => target.len() as u64,
        };
        Attributes {
            inode,
            mode: node.mode,
            links: node.links,
            uid: node.uid,
            gid: node.gid,
            size,
            atime_ns: node.atime_ns,
            mtime_ns: node.mtime_ns,
            ctime_ns: node.ctime_ns,
            blocks: size.div_ceil(512),
            rdev: 0,
        }
    }

    fn found(&self, inode: u64, created: bool) -> Found {
        let generation = self.node(inode).generation.to_le_bytes();
        let handle = [&inode.to_le_bytes()[..], &generation].concat();
        let binding = Binding { bfs: self.uuid.to_vec(), handle_type: 1, handle, birth_ns: 0 };
        Found { attributes: self.attributes(inode), binding, created }
    }

    /// The inode of a binding.
    fn bound(&self, binding: &Binding) -> Answer<u64> {
        let parts = binding.handle.split_first_chunk::<8>();
        let inode = parts.map_or(0, |(inode, _)| u64::from_le_bytes(*inode));
        let generation =
            parts.and_then(|(_, rest)| Some(u32::from_le_bytes(rest.try_into().ok()?)));
        let node = self.inodes.get(&inode).filter(|node| Some(node.generation) == generation);
        match node {
            Some(_) if binding.bfs == self.uuid => Ok(inode),
            _ => err(libc::ESTALE),
        }
    }

    fn make(&mut self, caller: &Credentials, place: &Place, mode: u32, kind: Kind) -> Answer<u64> {
        self.may(caller, place.dir, WRITE | SEARCH)?;
        // The lowest free number, as file systems do: a deleted file's number comes back at once.
        let inode = (2..).find(|n| !self.inodes.contains_key(n)).expect("numbers are left");
        self.generation += 1;
        let now = self.now_ns;
        let dir = matches!(kind, Kind::Dir(_));
        let node = Inode {
            generation: self.generation,
            mode,
            uid: caller.uid,
            gid: caller.gid,
            links: if dir { 2 } else { 1 },
            kind,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
        };
        self.inodes.insert(inode, node);
        self.entries_mut(place.dir).insert(place.name.clone(), inode);
        Ok(inode)
    }

    /// A name of an inode has gone.
    fn unlinked(&mut self, inode: u64) {
        let now = self.now_ns;
        let node = self.node_mut(inode);
        node.ctime_ns = now;
        node.links = if matches!(node.kind, Kind::Dir(_)) { 0 } else { node.links - 1 };
        if node.links == 0 {
            self.inodes.remove(&inode);
        }
    }

    pub(super) fn lookup(&self, caller: &Credentials, path: &[u8], follow: bool) -> Answer<Found> {
        Ok(self.found(self.existing(caller, path, follow)?, false))
    }

    pub(super) fn open(
        &mut self,
        caller: &Credentials,
        path: &[u8],
        flags: i32,
        mode: u32,
    ) -> Answer<Found> {
        let create = flags & libc::O_CREAT != 0;
        let exclusive = create && flags & libc::O_EXCL != 0;
        let place = self.walk(caller, path, flags & libc::O_NOFOLLOW == 0 && !exclusive)?;
        let Some(inode) = place.inode else {
            if !create {
                return err(libc::ENOENT);
            }
            if place.dir == ROOT && place.name == OWN_DIRECTORY.as_bytes() {
                return err(libc::EACCES);
            }
            let mode = libc::S_IFREG | (mode & 0o7777 & !caller.umask);
            let kind = Kind::File { data: Vec::new(), durable: None, name_durable: false };
            let inode = self.make(caller, &place, mode, kind)?;
            return Ok(self.found(inode, true));
        };
        if exclusive {
            return err(libc::EEXIST);
        }
        let access = flags & libc::O_ACCMODE;
        let writes = access != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        match &self.node(inode).kind {
            Kind::Link(_) => return err(libc::ELOOP),
            Kind::Dir(_) if writes || create => return err(libc::EISDIR),
            Kind::File { .. } if flags & libc::O_DIRECTORY != 0 => return err(libc::ENOTDIR),
            _ => {}
        }
        let reads = if access == libc::O_WRONLY { 0 } else { READ };
        self.may(caller, inode, reads | if writes { WRITE } else { 0 })?;
        Ok(self.found(inode, false))
    }

    pub(super) fn mkdir(&mut self, caller: &Credentials, path: &[u8], mode: u32) -> Answer<Found> {
        let place = self.walk_to_change(caller, path, libc::EEXIST)?;
        if place.inode.is_some() {
            return err(libc::EEXIST);
        }
        let mode = libc::S_IFDIR | (mode & 0o7777 & !caller.umask);
        let inode = self.make(caller, &place, mode, Kind::Dir(BTreeMap::new()))?;
        Ok(self.found(inode, true))
    }

    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) -> Answer<()> {
        let root = Credentials::default();
        let place = self.walk_to_change(&root, path, libc::EEXIST)?;
        if place.inode.is_some() {
            return err(libc::EEXIST);
        }
        self.make(&root, &place, libc::S_IFLNK | 0o777, Kind::Link(target.to_vec())).map(drop)
    }

    fn may_remove(&self, caller: &Credentials, place: &Place, inode: u64) -> Answer<()> {
        self.may(caller, place.dir, WRITE | SEARCH)?;
        let (dir, node) = (self.node(place.dir), self.node(inode));
        let sticky = dir.mode & libc::S_ISVTX != 0;
        if sticky && ![0, dir.uid, node.uid].contains(&caller.uid) {
            return err(libc::EPERM);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, caller: &Credentials, path: &[u8], dir: bool) -> Answer<()> {
        let of_root = if dir { libc::EBUSY } else { libc::EISDIR };
        let place = self.walk_to_change(caller, path, of_root)?;
        let inode = place.inode.ok_or(BfsError::Errno(libc::ENOENT))?;
        self.may_remove(caller, &place, inode)?;
        match (&self.node(inode).kind, dir) {
            (Kind::Dir(entries), true) if !entries.is_empty() => return err(libc::ENOTEMPTY),
            (Kind::Dir(_), false) => return err(libc::EISDIR),
            (Kind::File { .. } | Kind::Link(_), true) => return err(libc::ENOTDIR),
            _ => {}
        }
        self.entries_mut(place.dir).remove(&place.name);
        self.unlinked(inode);
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        caller: &Credentials,
        from: &[u8],
        to: &[u8],
        flags: u32,
    ) -> Answer<()> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return err(libc::EINVAL);
        }
        let source = self.walk_to_change(caller, from, libc::EBUSY)?;
        let target = self.walk_to_change(caller, to, libc::EBUSY)?;
        let inode = source.inode.ok_or(BfsError::Errno(libc::ENOENT))?;
        self.may_remove(caller, &source, inode)?;
        self.may(caller, target.dir, WRITE | SEARCH)?;
        if self.is_below(target.dir, inode) {
            return err(libc::EINVAL);
        }
        let Some(victim) = target.inode else {
            if flags & libc::RENAME_EXCHANGE != 0 {
                return err(libc::ENOENT);
            }
            self.entries_mut(source.dir).remove(&source.name);
            self.entries_mut(target.dir).insert(target.name, inode);
            return Ok(());
        };
        self.may_remove(caller, &target, victim)?;
        if flags & libc::RENAME_NOREPLACE != 0 {
            return err(libc::EEXIST);
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.entries_mut(source.dir).insert(source.name, victim);
            self.entries_mut(target.dir).insert(target.name, inode);
            return Ok(());
        }
        if victim == inode {
            return Ok(());
        }
        match (&self.node(inode).kind, &self.node(victim).kind) {
            (Kind::Dir(_), Kind::Dir(entries)) if !entries.is_empty() => {
                return err(libc::ENOTEMPTY);
            }
            (Kind::Dir(_), Kind::Dir(_)) => {}
            (Kind::Dir(_), _) => return err(libc::ENOTDIR),
            (_, Kind::Dir(_)) => return err(libc::EISDIR),
            _ => {}
        }
        self.entries_mut(source.dir).remove(&source.name);
        self.entries_mut(target.dir).insert(target.name, inode);
        self.unlinked(victim);
        Ok(())
    }

    /// True if `dir` is `above` or lies below it.
    fn is_below(&self, dir: u64, above: u64) -> bool {
        dir == above
            || match &self.node(above).kind {
                Kind::Dir(entries) => entries.values().any(|child| self.is_below(dir, *child)),
                _ => false,
            }
    }

    pub(super) fn readdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Answer<DirPage> {
        let dir = self.existing(caller, path, true)?;
        let entries = self.entries(dir)?;
        self.may(caller, dir, READ)?;
        let mut rest = entries.iter().filter(|(name, _)| name.as_slice() > after);
        let entry = |(name, inode): (&Vec<u8>, &u64)| DirEntry {
            name: name.clone(),
            inode: *inode,
            kind: self.node(*inode).mode >> 12 & 0xF,
        };
        let entries = rest.by_ref().take(limit).map(entry).collect();
        Ok(DirPage { entries, last: rest.next().is_none() })
    }

    pub(super) fn chmod(&mut self, caller: &Credentials, path: &[u8], mode: u32) -> Answer<()> {
        let inode = self.existing(caller, path, true)?;
        let now = self.now_ns;
        let node = self.node_mut(inode);
        if ![0, node.uid].contains(&caller.uid) {
            return err(libc::EPERM);
        }
        node.mode = node.mode & libc::S_IFMT | mode & 0o7777;
        node.ctime_ns = now;
        Ok(())
    }

    pub(super) fn chown(
        &mut self,
        caller: &Credentials,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Answer<()> {
        let inode = self.existing(caller, path, true)?;
        let now = self.now_ns;
        let node = self.node_mut(inode);
        let own_group = gid.is_none_or(|gid| gid == caller.gid || caller.groups.contains(&gid));
        let same_owner = uid.is_none_or(|uid| uid == node.uid);
        if caller.uid != 0 && !(caller.uid == node.uid && same_owner && own_group) {
            return err(libc::EPERM);
        }
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        node.ctime_ns = now;
        Ok(())
    }

    pub(super) fn utimens(
        &mut self,
        caller: &Credentials,
        path: &[u8],
        times: Times,
    ) -> Answer<()> {
        let inode = self.existing(caller, path, true)?;
        if ![0, self.node(inode).uid].contains(&caller.uid) {
            return err(libc::EPERM);
        }
        self.apply_times(inode, times);
        Ok(())
    }

    fn apply_times(&mut self, inode: u64, times: Times) {
        let now = self.now_ns;
        let node = self.node_mut(inode);
        node.atime_ns = times.atime_ns.unwrap_or(node.atime_ns);
        node.mtime_ns = times.mtime_ns.unwrap_or(node.mtime_ns);
        node.ctime_ns = now;
    }

    pub(super) fn access(&self, caller: &Credentials, path: &[u8], mode: u32) -> Answer<()> {
        self.may(caller, self.existing(caller, path, true)?, mode & 7)
    }

    pub(super) fn keep(&mut self, binding: &Binding, name: &str) -> Answer<()> {
        let inode = self.bound(binding)?;
        match self.hidden.get(name) {
            Some(there) if *there == inode => return Ok(()),
            Some(_) => return err(libc::EEXIST),
            None => {}
        }
        self.hidden.insert(name.to_owned(), inode);
        self.node_mut(inode).links += 1;
        Ok(())
    }

    pub(super) fn remove_hidden(&mut self, name: &str) {
        if let Some(inode) = self.hidden.remove(name) {
            self.unlinked(inode);
        }
    }

    pub(super) fn hidden_names(&self) -> Vec<String> {
        self.hidden.keys().cloned().collect()
    }

    pub(super) fn stat(&self, binding: &Binding) -> Answer<Attributes> {
        Ok(self.attributes(self.bound(binding)?))
    }

    pub(super) fn read(&self, binding: &Binding, offset: u64, out: &mut [u8]) -> Answer<usize> {
        let Kind::File { data, .. } = &self.node(self.bound(binding)?).kind else {
            return err(libc::EISDIR);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let len = out.len().min(data.len() - from);
        out[..len].copy_from_slice(&data[from..from + len]);
        Ok(len)
    }

    /// Bytes in all files.
    pub(super) fn used_bytes(&self) -> u64 {
        self.inodes
            .values()
            .map(
                |node| if let Kind::File { data, .. } = &node.kind { data.len() as u64 } else { 0 },
            )
            .sum()
    }

    /// Gives a file's bytes for changing, remembering what is durable of it.
    fn data_mut(&mut self, inode: u64) -> Answer<&mut Vec<u8>> {
        let now = self.now_ns;
        let node = self.node_mut(inode);
        (node.mtime_ns, node.ctime_ns) = (now, now);
        match &mut node.kind {
            Kind::File { data, durable, .. } => {
                durable.get_or_insert_with(|| data.clone());
                Ok(data)
            }
            _ => err(libc::EISDIR),
        }
    }

    pub(super) fn write(&mut self, binding: &Binding, offset: u64, bytes: &[u8]) -> Answer<()> {
        let inode = self.bound(binding)?;
        let size = self.attributes(inode).size;
        let end = offset + bytes.len() as u64;
        let grows = end.saturating_sub(size);
        if self.used_bytes().saturating_add(grows) > self.capacity_bytes {
            return err(libc::ENOSPC);
        }
        let data = self.data_mut(inode)?;
        let (from, end) = (to_usize(offset)?, to_usize(end)?);
        if data.len() < end {
            data.resize(end, 0);
        }
        data[from..end].copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn truncate(&mut self, binding: &Binding, size: u64) -> Answer<()> {
        let inode = self.bound(binding)?;
        let size = to_usize(size)?;
        self.data_mut(inode)?.resize(size, 0);
        Ok(())
    }

    pub(super) fn fsync(&mut self, binding: &Binding, name: bool) -> Answer<()> {
        let inode = self.bound(binding)?;
        if let Kind::File { durable, name_durable, .. } = &mut self.node_mut(inode).kind {
            *durable = None;
            *name_durable |= name;
        }
        Ok(())
    }

    pub(super) fn set_times(&mut self, binding: &Binding, times: Times) -> Answer<()> {
        let inode = self.bound(binding)?;
        self.apply_times(inode, times);
        Ok(())
    }

    /// Loses what was not made durable, file by file, as `lose` says; gives the number of files
    /// hurt. Names other than those of new files are journaled: they stay.
    pub(super) fn power_cut(&mut self, mut lose: impl FnMut() -> bool) -> u64 {
        let mut hurt = 0;
        let mut vanished = Vec::new();
        for (inode, node) in &mut self.inodes {
            let Kind::File { data, durable, name_durable } = &mut node.kind else { continue };
            if !*name_durable && lose() {
                vanished.push(*inode);
                hurt += 1;
            } else if let Some(old) = durable.take()
                && lose()
            {
                *data = old;
                hurt += 1;
            }
            *name_durable = true;
        }
        for node in self.inodes.values_mut() {
            if let Kind::Dir(entries) = &mut node.kind {
                entries.retain(|_, inode| !vanished.contains(inode));
            }
        }
        self.hidden.retain(|_, inode| !vanished.contains(inode));
        self.inodes.retain(|inode, _| !vanished.contains(inode));
        hurt
    }

    /// Path and contents of every file.
    pub(super) fn files(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, inode)) = left.pop() {
            match &self.node(inode).kind {
                Kind::Dir(entries) => left.extend(
                    entries.iter().map(|(name, child)| ([&path, &b"/"[..], name].concat(), *child)),
                ),
                Kind::File { data, .. } => {
                    files.insert(path, data.clone());
                }
                Kind::Link(_) => {}
            }
        }
        files
    }
}

fn to_usize(value: u64) -> Answer<usize> {
    usize::try_from(value).map_err(|_| BfsError::Errno(libc::EFBIG))
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
