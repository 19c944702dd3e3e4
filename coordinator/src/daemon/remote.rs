//! What a coordinator needs to serve other machines: where it listens, how it is reached, its certificate.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use faultbed_common::{duration::Span, name::CoordinatorName};
use tokio::net::TcpListener;

use crate::{
    editor::Editor,
    listen::tls::TlsDoor,
    mirror::MirrorHandle,
    pki::{Own, Pki},
};

/// How long certificates count where nothing is said.
const CERTIFICATE_LIFETIME: &str = "90d";

/// Flags of a coordinator of many machines.
#[derive(Debug, Clone, clap::Args)]
pub struct RemoteArgs {
    /// Serve other machines here, over TLS: ADDRESS:PORT. Without it only this machine is served.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// How other machines reach this one: HOST or HOST:PORT; may be repeated. Needed where --listen
    /// names no single address, as 0.0.0.0 does.
    #[arg(long, value_name = "HOST[:PORT]", requires = "listen")]
    pub advertise: Vec<String>,
    /// This coordinator's name, where several serve one lab [default: this machine's name]
    #[arg(long, requires = "listen")]
    pub name: Option<CoordinatorName>,
    /// How long certificates count; they are renewed long before.
    #[arg(long, value_name = "TIME", default_value = CERTIFICATE_LIFETIME)]
    pub certificate_lifetime: Span,
}

/// Opens the port for other machines, where one is asked for. Callers queue until it is served.
///
/// # Errors
/// The address is not this machine's, or is in use.
pub async fn bind(args: &RemoteArgs) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = args.listen else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).with_context(|| format!("listen on {address}"))
}

/// Makes the door for other machines.
///
/// # Errors
/// Nobody could reach it by the names that are given, or the lab's CA cannot be had.
pub async fn open(
    args: &RemoteArgs,
    listener: TcpListener,
    mirror: Arc<MirrorHandle>,
    editor: Editor,
) -> anyhow::Result<(Arc<Pki>, Arc<TlsDoor>)> {
    let address = listener.local_addr().context("read own address")?;
    let (urls, hosts) = reached(&args.advertise, address)?;
    let name = args.name.clone().map_or_else(machine_name, Ok)?;
    let own = Own { name, urls, hosts };
    let opened = Pki::open(mirror, editor, own, args.certificate_lifetime.0).await;
    let pki = Arc::new(opened.context("open the lab's CA")?);
    let door = TlsDoor::new(listener, Arc::clone(&pki))?;
    Ok((pki, Arc::new(door)))
}

/// URLs under which others reach `address`, and the hosts in them.
///
/// # Errors
/// There is none, or one makes no sense.
fn reached(
    advertise: &[String],
    address: SocketAddr,
) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    if advertise.is_empty() {
        if address.ip().is_unspecified() {
            bail!(
                "{address} is no address that others can dial; say how they reach this machine \
                 with --advertise HOST"
            );
        }
        return Ok((vec![format!("https://{address}")], vec![address.ip().to_string()]));
    }
    let read = advertise.iter().map(|text| split(text, address.port()));
    let read = read.collect::<anyhow::Result<Vec<_>>>()?;
    let url = |(host, port): &(String, u16)| match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("https://[{v6}]:{port}"),
        Ok(IpAddr::V4(_)) | Err(_) => format!("https://{host}:{port}"),
    };
    Ok((read.iter().map(url).collect(), read.into_iter().map(|(host, _)| host).collect()))
}

/// Host and port of `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address.
fn split(text: &str, port: u16) -> anyhow::Result<(String, u16)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text.to_owned(), port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (text, Some(port)),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    match port {
        Some(port) if !host.is_empty() && host.chars().all(is_host) => Ok((host.to_owned(), port)),
        Some(_) | None => bail!("read --advertise {text:?}: write HOST or HOST:PORT"),
    }
}

/// This machine's name, as far as it is a name of ours.
fn machine_name() -> anyhow::Result<CoordinatorName> {
    let uname = rustix::system::uname();
    let text = uname.nodename().to_string_lossy().to_ascii_lowercase();
    let short = text.split('.').next().unwrap_or_default();
    let words = short.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-");
    let named = CoordinatorName::parse(&name).or_else(|_| format!("c-{name}").parse());
    named.context("name this coordinator after its machine; give it another with --name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(advertise: &[&str], address: &str) -> anyhow::Result<Vec<String>> {
        let advertise: Vec<String> = advertise.iter().map(|&text| text.to_owned()).collect();
        reached(&advertise, address.parse().unwrap()).map(|(urls, _)| urls)
    }

    #[test]
    fn others_dial_what_is_advertised_else_the_address_itself() {
        assert_eq!(urls(&[], "10.0.0.1:7400").unwrap(), ["https://10.0.0.1:7400"]);
        let all = ["c1.example", "10.0.0.1:8000", "[fd00::1]:9000", "fd00::2"];
        assert_eq!(
            urls(&all, "0.0.0.0:7400").unwrap(),
            [
                "https://c1.example:7400",
                "https://10.0.0.1:8000",
                "https://[fd00::1]:9000",
                "https://[fd00::2]:7400"
            ]
        );
    }

    #[test]
    fn what_nobody_could_dial_is_refused() {
        let error = urls(&[], "0.0.0.0:7400").unwrap_err().to_string();
        assert!(error.contains("--advertise"), "{error}");
        for bad in ["https://c1", "c1:port", "", ":1", "a b"] {
            assert!(urls(&[bad], "0.0.0.0:7400").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_without_a_good_name_still_names_a_coordinator() {
        assert!(machine_name().is_ok());
    }
}
