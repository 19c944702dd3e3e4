//! What the command line of a benchmark asks for.

/// Options as `--name value`, in any order; a flag has no value.
#[derive(Debug, Default)]
pub(crate) struct Options {
    given: Vec<(String, String)>,
    pub(crate) json: bool,
}

impl Options {
    /// # Errors
    /// Where an option is not known or lacks its value.
    pub(crate) fn parse(arguments: &[String], known: &[&str]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let name = argument.trim_start_matches("--");
            if name == "json" {
                options.json = true;
                continue;
            }
            anyhow::ensure!(known.contains(&name), "{argument} is not known, only {known:?}");
            let Some(value) = rest.next() else { anyhow::bail!("{argument} needs a value") };
            options.given.push((name.to_owned(), value.clone()));
        }
        Ok(options)
    }

    /// All values of an option that may be given more than once.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.given.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a list separated by commas names `one`, or is not given.
    pub(crate) fn picks(&self, name: &str, one: &str) -> bool {
        let lists = self.all(name);
        lists.is_empty() || lists.iter().flat_map(|list| list.split(',')).any(|name| name == one)
    }

    /// A number, or what it is without being asked.
    pub(crate) fn number(&self, name: &str, default: usize) -> usize {
        self.all(name).last().and_then(|value| value.parse().ok()).unwrap_or(default)
    }
}
