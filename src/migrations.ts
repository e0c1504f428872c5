import { type Rights } from './database/grant.js';
import { type Migration } from './database/migrate.js';

/**
 * All migrations, in the order in which they are applied. A released one is never edited: a new one changes what it
 * made, and brings a changed function whole, in a file of its own. `sha256sum` of the file gives its checksum.
 */
export const migrations: readonly Migration[] = [
  {
    file: 'event-store/migrations/0001-log.sql',
    sha256: '5221727be685398f265c3abbb965febd7dced0b981ed6f814596b39fa472b2ee',
  },
  {
    file: 'event-store/migrations/0002-lane_ends.sql',
    sha256: '65979119446f401f8832f561bc95ee2e112058a9062fe33a5b97ede5a7f684fc',
  },
  {
    file: 'event-store/migrations/0003-lease_take.sql',
    sha256: 'cfc0f045a7399e480006e8323e9b961a59735af38c5c415417814efe4f6dd5a2',
  },
  {
    file: 'event-store/migrations/0004-append_event.sql',
    sha256: '262c393e1f02cf4da0becdacc5f1104193f5feb2c483eb604a8fd0484e2c6a21',
  },
  {
    file: 'event-store/migrations/0005-append_batch.sql',
    sha256: 'a1055998516fae3a71c8f4bf0a4199075ba6a751c08e88b5d1e38e34b1c6a2ba',
  },
  {
    file: 'event-store/migrations/0006-import_batch.sql',
    sha256: '6518506b29ff89e9362ca0f02bec4b64cc0a4db7c778f9eecfd7c0ec53b1854d',
  },
  {
    file: 'event-store/migrations/0007-last_version.sql',
    sha256: '6367f331f99e20369fa8e34fb86f64e6356a7faf49604f8e77081b972fe0443d',
  },
  {
    file: 'projection-engine/migrations/0008-checkpoints.sql',
    sha256: 'eb9c206f5eb08a05d6f2c2b1b1649ed171c5a504ec646ba5b8cbf1632ec4960e',
  },
  {
    file: 'kafka/migrations/0009-relay.sql',
    sha256: '89d2bc8d79a28dea4bc545fde4d96534573e6dc1f21a7cc11d658c3b1fb1e558',
  },
  {
    file: 'sessions/migrations/0010-partial-replies.sql',
    sha256: 'c8c5b8d81354a996b57a001b800bfe19d0446e88886b51b95333234209d4abb1',
  },
  {
    file: 'event-store/migrations/0011-reserved-streams.sql',
    sha256: 'a11795f8da8d3a82f75283c4bb11ef07b2c99f0248fbd0f2515504bb812bb108',
  },
  {
    file: 'event-store/migrations/0012-append_chains.sql',
    sha256: 'ec59ad7b5acbc79e1d00a85330b2eedb6e064b95413bf95295f4f5e31c2360c9',
  },
  {
    file: 'event-store/migrations/0013-append_known.sql',
    sha256: 'd981671381465573175ba5f94a68fba66689e01f117dfb0bf153bc22c8931b85',
  },
  {
    file: 'access/migrations/0014-api-keys.sql',
    sha256: '1ddafc37462b048a8d35c029cd0b5741eb47157b401b9f1c766f60b643e664cc',
  },
  {
    file: 'kafka/migrations/0015-relay-database.sql',
    sha256: 'fecc54130b14fd7241283c737706e0e781ab661a7082b3f8fe4fb67afb40f77f',
  },
  {
    file: 'event-store/migrations/0016-log_generation.sql',
    sha256: '9b151fddaaacdaa21f004676f89badfbaa9de551d641199b01cff50da9772225',
  },
  {
    file: 'kafka/migrations/0017-relay-generation.sql',
    sha256: '69b7985fe5e8df5f01872eec5b2985af311017051022221a03cc0ae9c08d989c',
  },
  {
    file: 'event-store/migrations/0018-log_loss.sql',
    sha256: 'e56510912722713e8a18ab40ea0ffdc1bb64b4dabc8c56074cab834ab5d4a427',
  },
  {
    file: 'cells/migrations/0019-tenant_cell.sql',
    sha256: '42a2a5650575d58e22ecf69bb75852a4eb4c2c2dff24f30debefc29cab809a37',
  },
  {
    file: 'event-store/migrations/0020-tenant_absence.sql',
    sha256: '3ca16402dda06445e5b2d3dbf5f8ae8bcadefc18f77627ffc79a341d4985d54b',
  },
  {
    file: 'cells/migrations/0021-tenant-moves.sql',
    sha256: '24807059a31d96fe8ef3f4f961035de82a2cb8f5c9aaf6fdff572883d6b7bc01',
  },
  {
    file: 'event-store/migrations/0022-lease_epochs.sql',
    sha256: '43133cd2e00df0fe4b4c22670bc079cff0348c2d182c8353d5015cba62e73c47',
  },
  {
    file: 'event-store/migrations/0023-data_key.sql',
    sha256: '0807fed01ac114e993027a4706800a3c4258bcfa3f98875861c6a32117d9ea44',
  },
  {
    file: 'sessions/migrations/0024-sealed-replies.sql',
    sha256: 'e9ac5c0751cccb6df546eb02c1a1f4f67296f831361d4a69632df1477b16314b',
  },
  {
    file: 'event-store/migrations/0025-append_destroying.sql',
    sha256: 'd404c656d343a70335fd24a6da5ae629d17da18a15a7dcfd13496a614fff7274',
  },
  {
    file: 'proof/migrations/0026-proof.sql',
    sha256: '47bf13230ff8713dcab1083be431c1ecbc61907ba00734287873916063045c0e',
  },
  {
    file: 'event-store/migrations/0027-node.sql',
    sha256: 'ddbee7447a723de084352495acc94c9918e7c440244f3bee4e2ead831462fac0',
  },
  {
    file: 'cells/migrations/0028-cell_name.sql',
    sha256: '18dc15557e8ea3fbb6d9488fe9770172f96edadb62221fd48d4e3a9e804bd3df',
  },
];

const ALL = ['select', 'insert', 'update', 'delete'] as const;

/**
 * What the role of the service needs. Events are added and never changed; what migrations wrote is read. API keys are
 * revoked and never deleted; the keys of payloads are wrapped anew or destroyed. Read models are made and dropped by the
 * service itself.
 */
export const rights: Rights = {
  tables: {
    event: ['select', 'insert'],
    log_generation: ['select', 'insert'],
    log_loss: ['select', 'insert'],
    log_settings: ['select'],
    migration: ['select'],
    merkle_lane: ['select', 'update'],
    merkle_tile: ['select', 'insert', 'update'],
    notary_key: ['select', 'insert', 'update (retired_at)'],
    signed_checkpoint: ['select', 'insert'],
    api_key: ['select', 'insert', 'update'],
    data_key: ['select', 'insert', 'update (master, wrapped, destroyed_at)'],
    cell_name: ['select', 'insert'],
    command: ALL,
    counter: ALL,
    generation_chunk: ALL,
    lease: ALL,
    node: ['select', 'insert', 'delete'],
    projection_checkpoint: ALL,
    projection_parked: ALL,
    projection_rebuild: ALL,
    relay_checkpoint: ALL,
    relay_topic: ALL,
    moved_position: ['select', 'insert'],
    tenant_absence: ['select'],
    tenant_cell: ['select', 'insert', 'update'],
    tenant_copy: ALL,
    stream_snapshot: ALL,
    stream_state: ALL,
  },
  sequences: ['lease_epoch', 'tenant_cell_change'],
  owned: `select projection as name from projection_checkpoint
          union select shadow from projection_rebuild where shadow is not null`,
};
