//! `context add`: a lab that others run, by a one-time token or by a socket of this machine.

use std::{fs, path::Path};

use faultbed_common::{
    name::LabName,
    trust::{Identity, Token, Who},
};
use faultbed_trust::{TrustError, ask, credentials::Credentials, key::Key};

use crate::cli::{
    client::Client,
    context::{CONTEXT_FILE, Context, Places, lab_name},
    failure::Failure,
    output,
};

/// Arguments of `context add`.
#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// What `faultbed user token` printed, or `unix:` and the path of a coordinator's socket
    what: String,
    /// What this lab is called here, where another one has its name
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

/// Runs `context add`.
///
/// # Errors
/// The token does not let in, nobody answers, or the name is taken.
pub(super) fn run(places: &Places, args: &AddArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("start the runtime", &e))?;
    runtime.block_on(async {
        match args.what.strip_prefix("unix:") {
            Some(socket) => by_socket(places, args, Path::new(socket)).await,
            None => by_token(places, args).await,
        }
    })
}

async fn by_token(places: &Places, args: &AddArgs) -> Result<(), Failure> {
    let token: Token = args
        .what
        .parse()
        .map_err(|error: faultbed_common::trust::TokenError| Failure::refused(error.to_string()))?;
    let mut context = empty(places, args, &token.lab)?;
    let key = Key::new().map_err(|error| say(&error))?;
    let (issued, _) =
        ask::join(&token, &key, ask::Bearer::User).await.map_err(|error| say(&error))?;
    let identity: Identity = issued.identity.parse().map_err(Failure::no)?;
    let Who::User(user, role) = identity.who else {
        return Err(Failure::refused(
            "this token is for a host: give it to `faultbed-agent join` there",
        ));
    };
    context.remote = issued.urls;
    let credentials =
        Credentials { key: key.pem(), certificate: issued.certificate, ca: issued.ca };
    make(&context)?;
    credentials.write(&context.identity_dir()).map_err(|error| say(&error))?;
    added(places, &context)?;
    output::say(format!(
        "you are {user}, {role} of lab `{}`; later commands mean it",
        context.name
    ));
    Ok(())
}

async fn by_socket(places: &Places, args: &AddArgs, socket: &Path) -> Result<(), Failure> {
    let socket = std::path::absolute(socket)
        .map_err(|e| Failure::io(format!("find {}", socket.display()), &e))?;
    // Asked under a name that is nobody's, since the lab itself says how it is called.
    let unknown = lab_name("unknown")?;
    let mut context =
        Context { remote: vec![format!("unix:{}", socket.display())], ..bare(places, unknown) };
    let lab = Client::connect(context.clone()).await?.status().await?.lab;
    let known = empty(places, args, &lab)?;
    context = Context { remote: context.remote, ..known };
    make(&context)?;
    added(places, &context)?;
    output::say(format!("later commands mean lab `{}`", context.name));
    Ok(())
}

fn say(error: &TrustError) -> Failure {
    match error {
        TrustError::Refused { .. } => Failure::refused(error.to_string())
            .next("ask an admin of the lab for: faultbed user token NAME --role operator"),
        TrustError::Connect { .. } => Failure::unreachable(error.to_string()),
        TrustError::Unreadable { .. } | TrustError::Disk { .. } | TrustError::Make { .. } => {
            Failure::no(error.to_string())
        }
    }
}

/// A context of this name, unless a lab of this machine has it.
fn empty(places: &Places, args: &AddArgs, lab: &LabName) -> Result<Context, Failure> {
    let name = match &args.name {
        Some(name) => lab_name(name)?,
        None => lab.clone(),
    };
    if let Some(held) = Context::read(&places.lab_dir(&name))?
        && !held.is_remote()
    {
        return Err(Failure::refused(format!("there is a lab `{name}` of this machine already"))
            .next("faultbed context add … --as ANOTHER"));
    }
    Ok(bare(places, name))
}

fn bare(places: &Places, name: LabName) -> Context {
    Context {
        version: 1,
        octet: 0,
        dir: places.lab_dir(&name),
        runtime: places.lab_dir(&name),
        store: String::new(),
        hosts: 0,
        token: String::new(),
        ephemeral: false,
        terms: 0,
        etcd: Default::default(),
        remote: Vec::new(),
        name,
    }
}

fn make(context: &Context) -> Result<(), Failure> {
    let say = |e: std::io::Error| {
        Failure::io(format!("write {}", context.dir.join(CONTEXT_FILE).display()), &e)
    };
    fs::create_dir_all(&context.dir).map_err(say)
}

fn added(places: &Places, context: &Context) -> Result<(), Failure> {
    context.write()?;
    places.set_current(&context.name)
}
