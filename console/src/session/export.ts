import { type Event } from '../api/client.js';

/**
 * A session in the format of `colloquy export`, which `colloquy import` reads: a line for each event, one for the session,
 * and the manifest with the SHA-256 of every byte before it.
 */
export async function exportOf(events: readonly Event[]): Promise<string> {
  const last = events.at(-1);
  if (!last) throw new Error('There is nothing to export.');
  if (!isSecureContext)
    throw new Error('An export has a checksum, which browsers make over HTTPS or on this machine alone.');
  const lines = events.map(
    ({ id, type, schemaVersion, tenant, sessionId, incarnation, version, time, ...rest }) => {
      const { actor, correlationId, causationId, data, erased } = rest;
      return {
        ...{ id, type, schemaVersion, tenant, sessionId, incarnation, version, time },
        ...{ actor, correlationId, causationId, data },
        ...(erased && { erased }),
      };
    },
  );
  const { tenant, sessionId, version } = last;
  const body = [...lines, { session: { tenant, sessionId, version } }]
    .map((line) => `${JSON.stringify(line)}\n`)
    .join('');
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(body));
  const sha256 = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return `${body}${JSON.stringify({ manifest: { format: 1, sessions: 1, events: events.length, sha256 } })}\n`;
}
