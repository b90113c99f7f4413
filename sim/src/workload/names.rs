//! Names, what is known of them, and who may touch them.
//!
//! The backing file system is the truth about names. The tester lets only one operation at a time
//! change a name, so that each has one right answer; bytes are written and read by everybody at any
//! time. A name whose last operation nobody has seen the end of (its client was killed) is given
//! up: a late message may still change it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Whose a name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Everybody's.
    Shared,
    /// The client with this place; its successors', too.
    Place(usize),
}

/// A name.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The path.
    pub path: String,
    /// Who uses it.
    pub owner: Owner,
    /// The file under it.
    pub file: Option<u64>,
    /// Rises with each change.
    pub version: u64,
    generation: u64,
    shared: u32,
    exclusive: bool,
}

impl Slot {
    /// True while somebody changes it.
    pub const fn is_taken(&self) -> bool {
        self.exclusive
    }
}

/// All names. Cheap to clone.
#[derive(Clone, Default)]
pub struct Names {
    slots: Rc<RefCell<Vec<Slot>>>,
    given_up: Rc<RefCell<Vec<String>>>,
    gone: Rc<RefCell<BTreeSet<u64>>>,
}

impl Names {
    /// Adds a name; its number.
    pub fn add(&self, path: &str, owner: Owner) -> usize {
        let mut slots = self.slots.borrow_mut();
        slots.push(Slot {
            path: path.to_owned(),
            owner,
            file: None,
            version: 0,
            generation: 0,
            shared: 0,
            exclusive: false,
        });
        slots.len() - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    /// A copy of what is known of one.
    pub fn get(&self, slot: usize) -> Slot {
        self.slots.borrow()[slot].clone()
    }

    /// Numbers of all that `place` may use.
    pub fn of(&self, place: usize) -> Vec<usize> {
        let slots = self.slots.borrow();
        let mine = |slot: &Slot| slot.owner == Owner::Shared || slot.owner == Owner::Place(place);
        (0..slots.len()).filter(|at| mine(&slots[*at])).collect()
    }

    /// Paths that were given up.
    pub fn given_up(&self) -> Vec<String> {
        self.given_up.borrow().clone()
    }

    /// The last name of a file is gone, or may be.
    pub fn lose(&self, file: u64) {
        self.gone.borrow_mut().insert(file);
    }

    /// True if a file may have no name any more: other clients than its own then lose it.
    pub fn is_gone(&self, file: u64) -> bool {
        self.gone.borrow().contains(&file)
    }

    /// Says what is under a name now.
    pub fn set(&self, slot: usize, file: Option<u64>) {
        let mut slots = self.slots.borrow_mut();
        slots[slot].file = file;
        slots[slot].version += 1;
    }

    /// Uses names without changing them, if nobody changes one.
    pub fn share(&self, slot: usize) -> Option<NameGuard> {
        let mut slots = self.slots.borrow_mut();
        if slots[slot].exclusive {
            return None;
        }
        slots[slot].shared += 1;
        Some(NameGuard { names: self.clone(), slots: vec![slot], exclusive: false, done: true })
    }

    /// Takes names to change them, if nobody uses one.
    pub fn take(&self, wanted: &[usize]) -> Option<NameGuard> {
        let mut slots = self.slots.borrow_mut();
        if wanted.iter().any(|at| slots[*at].exclusive || slots[*at].shared > 0) {
            return None;
        }
        for at in wanted {
            slots[*at].exclusive = true;
            slots[*at].version += 1;
        }
        Some(NameGuard {
            names: self.clone(),
            slots: wanted.to_vec(),
            exclusive: true,
            done: false,
        })
    }
}

/// Names in use. Dropped without [`NameGuard::done`] after having been taken, or while something may
/// make them, they are given up.
pub struct NameGuard {
    names: Names,
    slots: Vec<usize>,
    exclusive: bool,
    done: bool,
}

impl NameGuard {
    /// The operation makes the name if it comes so late that somebody has removed it.
    pub fn may_make(mut self) -> Self {
        self.done = false;
        self
    }

    /// The operation has ended and its outcome is known.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        let mut slots = self.names.slots.borrow_mut();
        for at in &self.slots {
            let slot = &mut slots[*at];
            if self.exclusive {
                slot.exclusive = false;
            } else {
                slot.shared -= 1;
                if self.done {
                    continue;
                }
            }
            slot.version += 1;
            if !self.done {
                self.names.given_up.borrow_mut().push(slot.path.clone());
                slot.generation += 1;
                if let Some(file) = slot.file.take() {
                    self.names.gone.borrow_mut().insert(file);
                }
                let base = slot.path.split('~').next().unwrap_or_default().to_owned();
                slot.path = format!("{base}~{}", slot.generation);
            }
        }
    }
}
