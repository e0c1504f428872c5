import { AppendEvent1770000000009 } from './event-store/migrations/0009-append-event.js';
import { Import1770000000007 } from './event-store/migrations/0007-import.js';
import { Log1770000000001 } from './event-store/migrations/0001-log.js';
import { Past1770000000008 } from './event-store/migrations/0008-past.js';
import { StreamState1770000000010 } from './event-store/migrations/0010-stream-state.js';
import { Relay1770000000003 } from './kafka/migrations/0003-relay.js';
import { Checkpoints1770000000002 } from './projection-engine/migrations/0002-checkpoints.js';
import { Rebuilds1770000000006 } from './projection-engine/migrations/0006-rebuilds.js';
import { GenerationChunks1770000000004 } from './sessions/migrations/0004-generation-chunks.js';
import { TenantStreams1770000000005 } from './sessions/migrations/0005-tenant-streams.js';

/** In the order in which they are applied. */
export const migrations = [
  Log1770000000001,
  Checkpoints1770000000002,
  Relay1770000000003,
  GenerationChunks1770000000004,
  TenantStreams1770000000005,
  Rebuilds1770000000006,
  Import1770000000007,
  Past1770000000008,
  AppendEvent1770000000009,
  StreamState1770000000010,
];
