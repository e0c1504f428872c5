import { type CommittedEvent } from '../event-store/leaf-reader.js';
import { hashLeaf } from './merkle.js';

/**
 * The text of an event's leaf: its envelope, its place and its commitment, as RFC 8785 writes JSON, so with the members
 * in alphabetical order. What it says is fixed by the format of exports: see docs/proof.md.
 */
export const leafText = (event: CommittedEvent): string =>
  JSON.stringify({
    actor: event.actor,
    causationId: event.causationId,
    commitment: event.commitment,
    correlationId: event.correlationId,
    id: event.id,
    incarnation: event.incarnation,
    lane: event.lane,
    position: event.position,
    schemaVersion: event.schemaVersion,
    sessionId: event.streamId,
    tenant: event.tenant,
    time: event.time,
    type: event.type,
    version: event.version,
  });

export const leafOf = (event: CommittedEvent): Buffer => hashLeaf(leafText(event));
