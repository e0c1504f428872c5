import { z } from 'zod';
import { sessionEvents, sessionId } from '../domain/session.events.js';
import { TENANT_ID } from '../domain/tenant.js';
import { canonicalJson } from '../event-store/canonical-json.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

/*
 * An export is JSON Lines in UTF-8, by tenant, session and version:
 *
 *   {"id": …, "type": …, …}                                         one line per event: its envelope as it was recorded
 *   {"session": {"tenant": …, "sessionId": …, "version": …}}        after the events of a session: its last version
 *   {"manifest": {"format": 1, "sessions": …, "events": …, "sha256": …}}     the last line, with the hash of all before
 *
 * With proofs, for `proof/verify-export.ts`, an event has a member `proof` more and the line of a session a member
 * `statement`; the checkpoints that they are of come first, and a statement on the whole before the manifest. An import
 * takes the sessions, and does not look at these.
 *
 * The manifest stands in the same file, a piece of it behind each session, so that neither side has to hold a list of
 * all sessions, and so that a file and a pipe are the same thing. Without proofs nothing in it depends on the moment of the export:
 * the same sessions give the same bytes.
 */

/** Raise this number when an older version could no longer read what is written. */
export const EXPORT_FORMAT = 1;

const count = z.int().nonnegative();
const version = z.int().positive();

/** All fields of an event but its position in the log. `data` is as it was recorded under `schemaVersion`. */
export const ExportedEvent = z.strictObject({
  id: z.uuid(),
  type: z.enum(Object.keys(sessionEvents) as (keyof typeof sessionEvents)[]),
  schemaVersion: version,
  tenant: z.string().regex(TENANT_ID),
  sessionId,
  incarnation: version,
  version,
  time: z.iso.datetime(),
  actor: z.string(),
  correlationId: z.string(),
  causationId: z.string().nullable(),
  data: z.record(z.string(), z.unknown()).nullable(),
  /** Stands where the data was erased, and nowhere else. */
  erased: z.literal(true).optional(),
  proof: z.record(z.string(), z.unknown()).optional(),
});
export type ExportedEvent = z.infer<typeof ExportedEvent>;

export const ExportedSession = z.strictObject({
  session: z.strictObject({ tenant: z.string(), sessionId: z.string(), version }),
  statement: z.string().optional(),
});

/** What is said of the log or the whole export. */
export const ExportAttestation = z.union([
  z.strictObject({ checkpoint: z.record(z.string(), z.unknown()) }),
  z.strictObject({ statement: z.string() }),
]);

export const ExportManifest = z.strictObject({
  manifest: z.strictObject({
    format: z.literal(EXPORT_FORMAT),
    sessions: count,
    events: count,
    /** SHA-256 of all bytes of the lines before this one, 64 hex digits. */
    sha256: z.string(),
  }),
});
export type ExportManifestData = z.infer<typeof ExportManifest>['manifest'];

/** The fields in the order in which they are written. */
export function exported(event: RecordedEvent): ExportedEvent {
  const { id, type, schemaVersion, tenant, streamId, incarnation, version, time } = event;
  const { actor, correlationId, causationId, data, erased } = event;
  return {
    id,
    type: type as ExportedEvent['type'],
    schemaVersion,
    tenant,
    sessionId: streamId,
    incarnation,
    version,
    time,
    actor,
    correlationId,
    causationId,
    // In one order of members, whether the log has it sealed or in plain.
    data: JSON.parse(canonicalJson(data)) as ExportedEvent['data'],
    ...(erased && { erased }),
  };
}
