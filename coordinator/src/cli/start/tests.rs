//! The flags of roles, from blueprints to spec.

use clap::CommandFactory;

use super::*;
use crate::cli::args::Args;

fn blueprints() -> BTreeMap<String, Blueprint> {
    let mut all = blueprints::shipped();
    let text = r#"
name = "pair"
summary = "two roles"
[role.front]
program = "sh"
count = 1
[role.back]
program = "sh"
count = 2
"#;
    let pair = faultbed_common::file::parse_blueprint(text).unwrap();
    all.insert("pair".into(), pair);
    all
}

fn parse(line: &str) -> Result<(String, BTreeMap<RoleName, RoleSpec>), String> {
    let all = blueprints();
    let matches = with_roles(Args::command(), &all)
        .try_get_matches_from(line.split(' '))
        .map_err(|e| e.to_string())?;
    let cluster =
        matches.subcommand_matches("start").unwrap().subcommand_matches("cluster").unwrap();
    let roles = roles(cluster, &all, Hosts::Here).map_err(|failure| failure.to_string())?;
    let (name, _) = choose(&all, &roles, false).map_err(|failure| failure.to_string())?;
    Ok((name, roles))
}

#[test]
fn the_roles_named_tell_the_blueprint() {
    let (name, roles) =
        parse("faultbed start cluster --back.count 5 --front.arg -v --front.arg=-x").unwrap();
    assert_eq!(name, "pair");
    let role = |text: &str| &roles[&text.parse::<RoleName>().unwrap()];
    assert_eq!(role("back").count, Some(5));
    assert_eq!(role("front").args, ["-v", "-x"]);
    assert_eq!(parse("faultbed start cluster --etcd.count 3").unwrap().0, "etcd");
    // Gitaly has a PostgreSQL of its own, and Redis Cluster is of servers that are called redis.
    assert_eq!(parse("faultbed start cluster --postgres.count 3").unwrap().0, "postgres");
    assert_eq!(parse("faultbed start cluster --redis.count 3").unwrap().0, "redis");
}

#[test]
fn misspelt_roles_bring_the_nearest_flag() {
    let error = parse("faultbed start cluster --ectd.count 3").unwrap_err();
    assert!(error.contains("'--etcd.count'"), "{error}");
}

#[test]
fn a_role_that_may_be_none_is_left_out_where_its_program_is_not_there() {
    let tidb = &blueprints()["tidb"];
    let role = |text: &str| text.parse::<RoleName>().unwrap();
    let leave = |roles: &[&str], missing: &[&str]| {
        let named = roles.iter().map(|text| (role(text), RoleSpec::default()));
        let mut spec = ClusterSpec { roles: named.collect(), ..ClusterSpec::default() };
        let problem = PathProblem { message: "it is not in PATH".into(), help: String::new() };
        let missing = missing.iter().map(|text| (role(text), problem.clone()));
        let notes = leave_out(&mut spec, tidb, missing.collect());
        let count = spec.roles.get(&role("tidb")).and_then(|tidb| tidb.count);
        (notes.map_err(|failure| failure.to_string()), count)
    };
    let (notes, count) = leave(&["tikv"], &["tidb"]);
    assert_eq!(notes.unwrap(), ["note: without tidb: it is not in PATH (--tidb.path names it)"]);
    assert_eq!(count, Some(0));
    leave(&["tikv", "tidb"], &["tidb"]).0.unwrap_err();
    leave(&["tikv"], &["pd", "tidb"]).0.unwrap_err();
}

#[test]
fn counts_out_of_range_are_refused() {
    let error = parse("faultbed start cluster --etcd.count 10000000").unwrap_err();
    assert!(error.contains("0..=1000"), "{error}");
}

#[test]
fn roles_of_no_single_blueprint_and_no_role_at_all_are_asked_about() {
    let error = parse("faultbed start cluster --etcd.count 3 --back.count 1").unwrap_err();
    assert!(error.contains("no one blueprint has all of the roles back, etcd"), "{error}");
    let error = parse("faultbed start cluster").unwrap_err();
    assert!(error.contains("several blueprints fit"), "{error}");
}

#[test]
fn a_program_that_does_not_exist_is_refused_with_its_flag() {
    let error = parse("faultbed start cluster --etcd.path ./no/such/etcd").unwrap_err();
    assert!(error.contains("--etcd.path: ") && error.contains("does not exist"), "{error}");
}

#[test]
fn nodes_and_clusters_start_with_one_verb() {
    let parse = |line: &str| Args::command().try_get_matches_from(line.split(' ')).is_ok();
    assert!(parse("faultbed start kv-1 kv-2 --no-wait"));
    assert!(parse("faultbed start cluster --name kv"));
    assert!(parse("faultbed --lab mine start kv-1"));
    assert!(parse("faultbed start cluster --lab mine"));
    assert!(!parse("faultbed start"));
}
