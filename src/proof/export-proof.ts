import { randomUUID } from 'node:crypto';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { type MerkleStore, type SignedCheckpoint } from './merkle-store.js';
import { NoNotaryKey, type NotaryKeys } from './notary-keys.js';
import { Proofs } from './proofs.js';
import { type NoteSigner } from './signed-note.js';
import { type TreeKeeper } from './tree-keeper.js';

/** The proof of one event, as an export has it; `verify-export.ts` says how it is checked. */
export interface EventProof {
  readonly lane: number;
  readonly position: number;
  /** Of sealed data, before which it stands when it is hashed. */
  readonly salt?: string;
  /** Where the data is gone, or was sealed without a commitment (null). */
  readonly commitment?: string | null;
  /** Hashes in base64, the sibling of the leaf first. */
  readonly path: readonly string[];
}

/** An event cannot be proven, because it is not what it was. */
export class NotProvable extends Error {
  override readonly name = 'NotProvable';
}

/** Makes what an export needs beside its events so that others can check it without this service. */
export class ExportProof {
  private readonly id = randomUUID();
  private readonly proofs: Proofs;
  private checkpoints = new Map<number, SignedCheckpoint>();
  private signer: NoteSigner | undefined;
  private sessions = 0;

  constructor(
    private readonly log: EventLog,
    private readonly store: MerkleStore,
    private readonly keeper: TreeKeeper,
    private readonly keys: NotaryKeys,
  ) {
    this.proofs = new Proofs(store);
  }

  /**
   * Sees to it that everything up to these positions is signed.
   * @param cut by lane: the last position
   * @returns the checkpoints, as lines of the export
   * @throws NoNotaryKey; DatabaseUnavailable
   */
  async begin(cut: readonly number[]): Promise<object[]> {
    await this.keeper.cover(cut);
    this.signer = await this.keys.signer();
    const checkpoints = (await this.store.latest()).filter(({ lane }) => (cut[lane] ?? 0) > 0);
    this.checkpoints = new Map(checkpoints.map((one) => [one.lane, one]));
    return checkpoints.map(({ lane, size, note, time }) => ({ checkpoint: { lane, size, time, note } }));
  }

  /** The proofs of events, in their order. @throws NotProvable */
  async of(events: readonly RecordedEvent[]): Promise<EventProof[]> {
    const openings = new Map(
      (await this.log.leaves.openings(events)).map((one) => [`${one.lane}/${one.position}`, one]),
    );
    const paths = new Map<RecordedEvent, Buffer[]>();
    for (const [lane, { size }] of this.checkpoints) {
      const ofLane = events.filter((event) => event.lane === lane);
      if (ofLane.length === 0) continue;
      const positions = ofLane.map(({ position }) => position);
      const found = await this.proofs.inclusion(lane, positions, size);
      for (const [index, event] of ofLane.entries()) paths.set(event, found[index] ?? []);
    }
    return events.map((event) => {
      const { lane, position } = event;
      const opening = openings.get(`${lane}/${position}`);
      const path = paths.get(event);
      if (!opening || !path || opening.fault !== null)
        throw new NotProvable(
          `the event at position ${position} of lane ${lane} cannot be proven: ${opening?.fault ?? 'it is not signed'}. ` +
            '`colloquy audit-log` tells what was changed',
        );
      const { salt, commitment } = opening;
      return {
        lane,
        position,
        ...(salt !== null && { salt }),
        ...((event.erased ?? commitment === null) && { commitment }),
        path: path.map((hash) => hash.toString('base64')),
      };
    });
  }

  /** A signed statement of which version was the last one of a session. */
  session({ tenant, streamId: sessionId, version, time }: RecordedEvent): string {
    this.sessions += 1;
    return this.signed('session', { number: this.sessions, tenant, sessionId, version, time });
  }

  /** A signed statement of what the whole export is. */
  async whole(claim: string, events: number): Promise<object> {
    const time = await this.log.now();
    return { statement: this.signed('export', { claim, sessions: this.sessions, events, time }) };
  }

  private signed(kind: string, statement: object): string {
    if (!this.signer) throw new NoNotaryKey();
    return this.signer.state(kind, { export: this.id, log: `colloquy/${this.log.id}`, ...statement });
  }
}
