//! Blueprints with the real databases from Debian's packages: each lives through the same list.

mod etcd;
mod life;
mod nats;
mod postgres;
mod redis;
mod redis_cluster;
mod stand_ins;
mod zookeeper;
