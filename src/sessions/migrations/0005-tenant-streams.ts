import { type MigrationInterface, type QueryRunner } from 'typeorm';
import { TENANT_STREAM } from '../../domain/tenant.js';

/** The tenants that have settings of their own are found without a look at every session. */
export class TenantStreams1770000000005 implements MigrationInterface {
  readonly name = 'TenantStreams1770000000005';

  async up(runner: QueryRunner): Promise<void> {
    // No append changes what it holds: updates of streams stay heap-only.
    await runner.query(
      `create index stream_of_tenant on stream (tenant) where stream_id = '${TENANT_STREAM}'`,
    );
  }

  down(): Promise<void> {
    return Promise.reject(new Error('the index is needed as long as there are tenants'));
  }
}
