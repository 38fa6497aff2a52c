//! Requests about migrations. `/plan` stands where an id could: no migration is called that.

use memdex_wire::migration::{Migration, MigrationPlan, MigrationRequest};
use reqwest::{RequestBuilder, header::CONTENT_TYPE};

use super::{Client, path};
use crate::{
    ClientError, limits,
    transport::{Deadline, JSON},
};

impl Client {
    /// What a migration would cost, and whether it could begin now. Nothing moves.
    ///
    /// # Errors
    /// A check that fails is no error: see [`MigrationPlan::possible`].
    pub async fn plan(&self, request: &MigrationRequest) -> Result<MigrationPlan, ClientError> {
        let post = self.post_migration("/v1/migrations/plan", request);
        let deadline = Deadline::work("the plan", self.0.timeouts.diff);
        self.0.json_within(post, limits::MAX_MIGRATION_BYTES, deadline).await
    }

    /// Begins to move a VM. It goes on at the host whatever becomes of this program: see
    /// [`follow_migration`](Self::follow_migration) and [`abort_migration`](Self::abort_migration).
    ///
    /// # Errors
    /// `is_conflict()` if it cannot work (the sentence has the checks that failed) or the VM is being migrated already.
    /// If the answer did not arrive whole the migration may have begun, and the sentence says so.
    pub async fn migrate(&self, request: &MigrationRequest) -> Result<Migration, ClientError> {
        let post = self.post_migration("/v1/migrations", request);
        let deadline = Deadline::work("the start of the migration", self.0.timeouts.diff);
        let answer = self.0.json_within(post, limits::MAX_MIGRATION_BYTES, deadline).await;
        answer.map_err(ClientError::after_a_start)
    }

    /// One migration, also for a while after its end.
    ///
    /// # Errors
    /// `is_not_found()` if the host does not know it.
    pub async fn migration(&self, id: &str) -> Result<Migration, ClientError> {
        self.migration_within(id, self.quick()).await
    }

    pub(crate) async fn migration_within(
        &self,
        id: &str,
        deadline: Deadline,
    ) -> Result<Migration, ClientError> {
        let get = self.0.get(&path::item(path::MIGRATIONS, id, "")?);
        self.0.json_within(get, limits::MAX_MIGRATION_BYTES, deadline).await
    }

    /// The migrations of the host, both ways, those that have ended lately included.
    ///
    /// # Errors
    /// If the host cannot be reached or gives no usable answer.
    pub async fn migrations(&self) -> Result<Vec<Migration>, ClientError> {
        self.0.json(self.0.get("/v1/migrations"), self.quick()).await
    }

    /// Asks for a migration to be called off. It has not ended yet when this returns: follow it to its end.
    ///
    /// # Errors
    /// `is_not_found()` if the host does not know it, `is_conflict()` if it is too late: the VM is being handed over.
    pub async fn abort_migration(&self, id: &str) -> Result<Migration, ClientError> {
        let post = self.0.post(&path::item(path::MIGRATIONS, id, "/abort")?);
        self.0.json_within(post, limits::MAX_MIGRATION_BYTES, self.quick()).await
    }

    fn post_migration(&self, path: &str, request: &MigrationRequest) -> RequestBuilder {
        let body = serde_json::to_vec(request).unwrap_or_default();
        self.0.post(path).header(CONTENT_TYPE, JSON).body(body)
    }
}
