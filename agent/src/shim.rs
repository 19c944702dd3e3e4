//! The parent process of one node: it outlives the agent, keeps the log, names the connections.
