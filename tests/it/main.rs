//! Tests of the whole system, in one binary.

mod api;
mod apply;
mod bad_input;
mod binaries;
mod crash;
mod deploy;
mod effects;
mod events;
mod faults;
mod hosts;
mod leave;
mod people;
mod proof;
mod store_etcd;
mod tidy;
mod trust;
mod up_down;
mod verbs;
mod web;
