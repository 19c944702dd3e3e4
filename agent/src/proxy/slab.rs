//! A worker's connections by key. A key is never reused, so that late news of a dead one meets nobody.

use crate::proxy::pair::Which;

/// Names one connection of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    place: u32,
    serial: u32,
}

/// Serials have this many bits: the token has one for the socket besides.
const SERIAL_BITS: u32 = 31;

impl Key {
    /// The number that epoll gives back with each event of a socket.
    pub(crate) fn token(self, which: Which) -> u64 {
        let side = match which {
            Which::Near => 0,
            Which::Far => 1,
        };
        (u64::from(self.place) << 32) | (u64::from(self.serial) << 1) | side
    }

    /// Which connection and socket a token is of.
    pub(crate) fn of_token(token: u64) -> (Self, Which) {
        let which = if token & 1 == 0 { Which::Near } else { Which::Far };
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        (Self { place: low(token >> 32), serial: low(token) >> 1 }, which)
    }
}

/// Values in places that are used again, each time with another serial.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<Box<T>>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let (serial, slot) = &mut self.places[place as usize];
        *serial = (*serial + 1) & ((1 << SERIAL_BITS) - 1);
        *slot = Some(Box::new(value));
        Key { place, serial: *serial }
    }

    pub(crate) fn find(&mut self, key: Key) -> Option<&mut T> {
        let (serial, slot) = self.places.get_mut(key.place as usize)?;
        if *serial == key.serial { slot.as_deref_mut() } else { None }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (serial, slot) = self.places.get(key.place as usize)?;
        if *serial == key.serial { slot.as_deref() } else { None }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<T>> {
        let (serial, slot) = self.places.get_mut(key.place as usize)?;
        if *serial != key.serial {
            return None;
        }
        let value = slot.take()?;
        self.free.push(key.place);
        Some(value)
    }

    /// The keys of all values.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let places = self.places.iter().enumerate().filter(|(_, (_, slot))| slot.is_some());
        let key = |(place, (serial, _)): (usize, &(u32, Option<Box<T>>))| Key {
            place: u32::try_from(place).unwrap_or(u32::MAX),
            serial: *serial,
        };
        places.map(key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_dead_finds_nobody_in_the_same_place() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first).as_deref(), Some(&'a'));
        let second = slab.insert('b');
        assert_eq!(first.place, second.place);
        assert_eq!(slab.find(first), None);
        assert!(slab.remove(first).is_none());
        assert_eq!(slab.find(second), Some(&mut 'b'));
        assert_eq!((slab.len(), slab.keys()), (1, vec![second]));
    }

    #[test]
    fn a_token_names_key_and_socket() {
        let key = Key { place: u32::MAX - 7, serial: (1 << SERIAL_BITS) - 1 };
        for which in [Which::Near, Which::Far] {
            assert_eq!(Key::of_token(key.token(which)), (key, which));
        }
    }
}
