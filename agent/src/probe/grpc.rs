//! `grpc.health.v1.Health/Check` over one channel that is kept.

use faultbed_common::expr::Answer;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// At most one channel, to the server that was asked last.
#[derive(Debug, Default)]
pub(super) struct Client {
    open: Option<(String, HealthClient<Channel>)>,
}

impl Client {
    pub(super) async fn ask(&mut self, address: &str, service: &str) -> Result<Answer, String> {
        let mut client = match self.open.take() {
            Some((held, client)) if held == address => client,
            _ => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|error| error.to_string())?;
                HealthClient::new(endpoint.connect().await.map_err(|error| error.to_string())?)
            }
        };
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = client.check(request).await.map_err(|status| status.message().to_owned())?;
        let status = response.into_inner().status();
        self.open = Some((address.to_owned(), client));
        let text = status.as_str_name().to_owned();
        Ok(Answer { status: i64::from(status != ServingStatus::Serving), text })
    }
}
