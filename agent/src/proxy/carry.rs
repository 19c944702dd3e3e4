//! Writes and reads state that goes to another process: documents of serde, and beside them what no
//! document can hold: descriptors, bulk bytes, and that two places share one thing.
//!
//! A type that is carried derives `Serialize` and `Deserialize` whole, so that a field added to it is
//! carried too or does not compile. The modules here are for `#[serde(with = "…")]`. What they collect
//! lies in a place of the thread meanwhile, since serde has no other way to pass it (as in ipc-channel).

use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

thread_local! {
    static LEAVING: RefCell<Luggage> = RefCell::default();
    static ARRIVED: RefCell<Arrived> = RefCell::default();
}

/// What goes beside a document.
#[derive(Debug, Default)]
pub(crate) struct Luggage {
    /// Duplicates; the originals stay where they are.
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) bytes: Vec<u8>,
    /// Shared things written already, by address. They live while the state is frozen.
    shared: BTreeSet<usize>,
}

/// What has arrived beside documents.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) descriptors: Vec<Option<OwnedFd>>,
    pub(crate) bytes: Vec<u8>,
    /// Shared things read already, by their type and their address in the other process.
    shared: BTreeMap<(TypeId, usize), Arc<dyn Any + Send + Sync>>,
}

/// Writes a document; what goes beside it is added to the luggage.
///
/// # Errors
/// Where a descriptor cannot be duplicated.
pub(crate) fn pack(luggage: &mut Luggage, value: &impl Serialize) -> io::Result<Vec<u8>> {
    LEAVING.with_borrow_mut(|place| std::mem::swap(place, luggage));
    let document = serde_json::to_vec(value);
    LEAVING.with_borrow_mut(|place| std::mem::swap(place, luggage));
    Ok(document?)
}

/// Reads a document, with what has arrived beside it.
///
/// # Errors
/// Where it is not what [`pack`] writes.
pub(crate) fn unpack<T: DeserializeOwned>(arrived: &mut Arrived, document: &[u8]) -> io::Result<T> {
    ARRIVED.with_borrow_mut(|place| std::mem::swap(place, arrived));
    let value = serde_json::from_slice(document);
    ARRIVED.with_borrow_mut(|place| std::mem::swap(place, arrived));
    Ok(value?)
}

/// An open descriptor.
pub(crate) mod descriptor {
    use super::{ARRIVED, Deserialize, Deserializer, LEAVING, OwnedFd, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(fd: &OwnedFd, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = fd.try_clone().map_err(serde::ser::Error::custom)?;
        let at = LEAVING.with_borrow_mut(|luggage| {
            luggage.descriptors.push(copy);
            luggage.descriptors.len() - 1
        });
        at.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OwnedFd, D::Error> {
        let at = usize::deserialize(deserializer)?;
        let taken = ARRIVED.with_borrow_mut(|arrived| arrived.descriptors.get_mut(at)?.take());
        taken.ok_or_else(|| serde::de::Error::custom(format!("descriptor {at} is not there")))
    }
}

/// An open descriptor that several hold.
pub(crate) mod shared_descriptor {
    use super::{Arc, Deserializer, OwnedFd, Serializer, descriptor};

    pub(crate) fn serialize<S: Serializer>(
        fd: &Arc<OwnedFd>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        descriptor::serialize(fd, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<OwnedFd>, D::Error> {
        descriptor::deserialize(deserializer).map(Arc::new)
    }
}

/// A map of descriptors that several hold.
pub(crate) mod shared_descriptors {
    use super::{
        Arc, BTreeMap, Deserialize, Deserializer, OwnedFd, Serialize, Serializer, shared_descriptor,
    };

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "shared_descriptor")] Arc<OwnedFd>);

    pub(crate) fn serialize<S: Serializer, K: Serialize>(
        map: &BTreeMap<K, Arc<OwnedFd>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter().map(|(key, fd)| (key, One(Arc::clone(fd)))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, K: Deserialize<'de> + Ord>(
        deserializer: D,
    ) -> Result<BTreeMap<K, Arc<OwnedFd>>, D::Error> {
        let list = Vec::<(K, One)>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|(key, One(fd))| (key, fd)).collect())
    }
}

/// Bytes of a stream, of which there may be many.
pub(crate) mod bytes {
    use super::{ARRIVED, Deserialize, Deserializer, LEAVING, Serialize, Serializer};

    pub(crate) fn serialize<'a, S: Serializer, T>(
        part: &'a T,
        serializer: S,
    ) -> Result<S::Ok, S::Error>
    where
        &'a T: IntoIterator<Item = &'a u8>,
    {
        let (start, end) = LEAVING.with_borrow_mut(|luggage| {
            let start = luggage.bytes.len();
            luggage.bytes.extend(part);
            (start, luggage.bytes.len())
        });
        (start, end - start).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let (start, length) = <(usize, usize)>::deserialize(deserializer)?;
        let taken = ARRIVED.with_borrow(|arrived| {
            arrived.bytes.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        });
        taken.map(T::from).ok_or_else(|| serde::de::Error::custom("bytes are not there"))
    }
}

/// A thing that several places share; there they share it again.
pub(crate) mod shared {
    use super::{
        ARRIVED, Any, Arc, Deserialize, DeserializeOwned, Deserializer, LEAVING, Serialize,
        Serializer, TypeId,
    };

    #[derive(Serialize, Deserialize)]
    struct Written<T> {
        at: usize,
        #[serde(skip_serializing_if = "Option::is_none", default = "nothing")]
        is: Option<T>,
    }

    fn nothing<T>() -> Option<T> {
        None
    }

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        thing: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let at = Arc::as_ptr(thing).addr();
        let is_new = LEAVING.with_borrow_mut(|luggage| luggage.shared.insert(at));
        Written { at, is: is_new.then_some(&**thing) }.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error>
    where
        T: DeserializeOwned + Any + Send + Sync,
    {
        let Written { at, is } = Written::<T>::deserialize(deserializer)?;
        let name = (TypeId::of::<T>(), at);
        let known = ARRIVED.with_borrow(|arrived| arrived.shared.get(&name).cloned());
        if let Some(thing) = known.and_then(|thing| thing.downcast().ok()) {
            return Ok(thing);
        }
        let thing = is.map(Arc::new);
        let thing = thing.ok_or_else(|| serde::de::Error::custom("a shared part is missing"))?;
        let kept: Arc<dyn Any + Send + Sync> = thing.clone();
        ARRIVED.with_borrow_mut(|arrived| arrived.shared.insert(name, kept));
        Ok(thing)
    }
}

/// As [`shared`], where there may be none.
pub(crate) mod maybe_shared {
    use super::{
        Any, Arc, Deserialize, DeserializeOwned, Deserializer, Serialize, Serializer, shared,
    };

    #[derive(Serialize, Deserialize)]
    #[serde(bound(
        serialize = "T: Serialize",
        deserialize = "T: DeserializeOwned + Any + Send + Sync"
    ))]
    struct One<T>(#[serde(with = "shared")] Arc<T>);

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        thing: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        thing.clone().map(One).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error>
    where
        T: DeserializeOwned + Any + Send + Sync,
    {
        Ok(Option::<One<T>>::deserialize(deserializer)?.map(|One(thing)| thing))
    }
}

/// A map whose keys are no text.
pub(crate) mod entries {
    use super::{BTreeMap, Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, K: Serialize, V: Serialize>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, K, V>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
