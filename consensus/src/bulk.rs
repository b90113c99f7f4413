//! Messages that are larger than a frame (snapshots): sent in pieces, a few under way, each
//! answered, the missing ones sent again; put together by the receiver in order.
//!
//! One transfer per peer and direction. A receiver keeps one unfinished message per sender, of a
//! few senders: a peer can't make it hold more than that.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::VoterNumber;
use crate::wire::{PIECE_OVERHEAD_BYTES, Piece, PieceTaken};

/// Pieces under way: enough to hide a round trip, few enough that heartbeats on the same
/// connection don't wait long behind them.
const PIECES_UNDER_WAY: usize = 4;
/// Ticks without an answer after which the pieces under way are sent again.
const RESEND_TICKS: u32 = 3;
/// Ticks without an answer after which the transfer is given up; the library tries again later.
const GIVE_UP_TICKS: u32 = 30;
/// Senders whose unfinished messages are kept. There is one leader at a time.
const SENDERS_MAX: usize = 4;

struct Sending {
    transfer: u64,
    bytes: Rc<[u8]>,
    taken: usize,
    sent: usize,
    quiet_ticks: u32,
}

struct Receiving {
    transfer: u64,
    total: usize,
    bytes: Vec<u8>,
    done: bool,
}

/// All transfers of one voter.
pub(crate) struct Bulk {
    piece_bytes: usize,
    total_bytes_max: u64,
    next_transfer: u64,
    sending: BTreeMap<VoterNumber, Sending>,
    receiving: BTreeMap<VoterNumber, Receiving>,
}

impl Bulk {
    /// `first_transfer` is random, so that a restart doesn't continue a transfer of before.
    pub(crate) fn new(message_bytes_max: usize, total_bytes_max: u64, first_transfer: u64) -> Self {
        Self {
            piece_bytes: message_bytes_max - PIECE_OVERHEAD_BYTES,
            total_bytes_max,
            next_transfer: first_transfer,
            sending: BTreeMap::new(),
            receiving: BTreeMap::new(),
        }
    }

    /// Begins to send; what was on its way to that peer is given up.
    pub(crate) fn begin(&mut self, to: VoterNumber, bytes: Vec<u8>) -> Vec<Piece> {
        let transfer = self.next_transfer;
        self.next_transfer = transfer.wrapping_add(1);
        let sending = Sending { transfer, bytes: bytes.into(), taken: 0, sent: 0, quiet_ticks: 0 };
        self.sending.insert(to, sending);
        self.pieces(to)
    }

    /// The pieces that may leave now.
    fn pieces(&mut self, to: VoterNumber) -> Vec<Piece> {
        let Some(sending) = self.sending.get_mut(&to) else { return Vec::new() };
        let until = (sending.taken + PIECES_UNDER_WAY * self.piece_bytes).min(sending.bytes.len());
        let mut pieces = Vec::new();
        while sending.sent < until {
            let end = (sending.sent + self.piece_bytes).min(sending.bytes.len());
            pieces.push(Piece {
                transfer: sending.transfer,
                total_bytes: sending.bytes.len() as u64,
                offset: sending.sent as u64,
                data: sending.bytes[sending.sent..end].to_vec(),
            });
            sending.sent = end;
        }
        pieces
    }

    /// A peer has taken pieces: what may leave now, and whether it has all.
    pub(crate) fn taken(&mut self, from: VoterNumber, taken: PieceTaken) -> (Vec<Piece>, bool) {
        let nothing = (Vec::new(), false);
        let Some(sending) = self.sending.get_mut(&from) else { return nothing };
        let Ok(offset) = usize::try_from(taken.offset) else { return nothing };
        if sending.transfer != taken.transfer
            || offset <= sending.taken
            || offset > sending.bytes.len()
        {
            return nothing;
        }
        sending.taken = offset;
        sending.sent = sending.sent.max(offset);
        sending.quiet_ticks = 0;
        if offset == sending.bytes.len() {
            self.sending.remove(&from);
            return (Vec::new(), true);
        }
        (self.pieces(from), false)
    }

    /// Time passes: what to send again, and to whom a transfer was given up.
    pub(crate) fn tick(&mut self) -> (Vec<(VoterNumber, Piece)>, Vec<VoterNumber>) {
        let (mut again, mut given_up) = (Vec::new(), Vec::new());
        let peers: Vec<_> = self.sending.keys().copied().collect();
        for peer in peers {
            let sending = self.sending.get_mut(&peer).expect("listed just now");
            sending.quiet_ticks += 1;
            if sending.quiet_ticks >= GIVE_UP_TICKS {
                self.sending.remove(&peer);
                given_up.push(peer);
            } else if sending.quiet_ticks.is_multiple_of(RESEND_TICKS) {
                sending.sent = sending.taken;
                again.extend(self.pieces(peer).into_iter().map(|piece| (peer, piece)));
            }
        }
        (again, given_up)
    }

    /// Nothing more is sent: the leadership is lost.
    pub(crate) fn stop_sending(&mut self) {
        self.sending.clear();
    }

    /// A piece came: the answer, and the message when it is whole. Nothing where it is too large.
    pub(crate) fn piece(
        &mut self,
        from: VoterNumber,
        piece: &Piece,
    ) -> Option<(PieceTaken, Option<Vec<u8>>)> {
        if piece.total_bytes > self.total_bytes_max {
            return None;
        }
        let (total, offset) =
            (usize::try_from(piece.total_bytes).ok()?, usize::try_from(piece.offset).ok()?);
        let known = self.receiving.get(&from).is_some_and(|r| r.transfer == piece.transfer);
        if !known {
            if offset != 0 {
                // Its beginning is lost, or it is an old one: the beginning is sent again.
                return Some((PieceTaken { transfer: piece.transfer, offset: 0 }, None));
            }
            if self.receiving.len() >= SENDERS_MAX && !self.receiving.contains_key(&from) {
                self.receiving.pop_first();
            }
            let fresh =
                Receiving { transfer: piece.transfer, total, bytes: Vec::new(), done: false };
            self.receiving.insert(from, fresh);
        }
        let receiving = self.receiving.get_mut(&from).expect("known, or put in just now");
        if receiving.total != total {
            return None;
        }
        let mut whole = None;
        if !receiving.done && offset == receiving.bytes.len() {
            receiving.bytes.extend_from_slice(&piece.data);
            if receiving.bytes.len() == total {
                receiving.done = true;
                whole = Some(std::mem::take(&mut receiving.bytes));
            }
        }
        let offset = if receiving.done { total } else { receiving.bytes.len() };
        Some((PieceTaken { transfer: piece.transfer, offset: offset as u64 }, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VoterNumber = VoterNumber(1);
    const B: VoterNumber = VoterNumber(2);

    #[test]
    fn a_message_arrives_whole_through_loss_duplication_and_reordering() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..rng.usize(1..40_000)).map(|_| rng.u8(..)).collect();
            let mut sender = Bulk::new(1000 + PIECE_OVERHEAD_BYTES, 1 << 20, seed);
            let mut receiver = Bulk::new(1000 + PIECE_OVERHEAD_BYTES, 1 << 20, 0);
            let mut net = sender.begin(B, bytes.clone());
            let (mut got, mut ended, mut ticks) = (Vec::new(), false, 0);
            while !ended {
                if net.is_empty() {
                    let (again, given_up) = sender.tick();
                    assert!(given_up.is_empty(), "seed {seed}");
                    net.extend(again.into_iter().map(|(_, piece)| piece));
                    ticks += 1;
                    assert!(ticks < 10_000);
                    continue;
                }
                let piece = net.swap_remove(rng.usize(..net.len()));
                if rng.u8(..10) < 2 {
                    continue;
                }
                for _ in 0..rng.usize(1..3) {
                    let (taken, whole) = receiver.piece(A, &piece).expect("not too large");
                    got.extend(whole);
                    if rng.u8(..10) < 8 {
                        let (more, end) = sender.taken(B, taken);
                        net.extend(more);
                        ended |= end;
                    }
                }
            }
            assert!(got == [bytes], "once, whole");
        }
    }

    #[test]
    fn a_peer_that_never_answers_is_given_up() {
        let mut sender = Bulk::new(1000, 1 << 20, 0);
        sender.begin(B, vec![0; 100]);
        let given_up = (0..GIVE_UP_TICKS).flat_map(|_| sender.tick().1).count();
        assert_eq!(given_up, 1);
        assert!(sender.tick().0.is_empty());
    }

    #[test]
    fn a_message_that_is_too_large_is_not_kept() {
        let mut receiver = Bulk::new(1000, 500, 0);
        let piece = Piece { transfer: 1, total_bytes: 501, offset: 0, data: vec![0; 10] };
        assert!(receiver.piece(A, &piece).is_none());
    }
}
