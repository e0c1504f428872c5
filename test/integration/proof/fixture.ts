import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Pool } from 'pg';
import { createPool } from '../../../src/database/connection.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { auditLog, type AuditedLog } from '../../../src/proof/audit-log.js';
import { ExportProof } from '../../../src/proof/export-proof.js';
import { MerkleStore } from '../../../src/proof/merkle-store.js';
import { NotaryKeys } from '../../../src/proof/notary-keys.js';
import { TreeKeeper } from '../../../src/proof/tree-keeper.js';
import { readKeys, type VerifiedExport, verifyExport } from '../../../src/proof/verify-export.js';
import { exportSessions, type ExportSelection } from '../../../src/transfer/export.js';

/** What proves the history of one log, as the service and the command line put it together. */
export class Prover {
  readonly store: MerkleStore;
  readonly keys: NotaryKeys;
  readonly keeper: TreeKeeper;
  private readonly pool: Pool;

  constructor(
    url: string,
    readonly log: EventLog,
  ) {
    this.pool = createPool(url, 'proof', { max: 2 });
    this.store = new MerkleStore(this.pool);
    this.keys = new NotaryKeys(this.pool, log);
    this.keeper = new TreeKeeper(log, this.store, this.keys);
  }

  /** Takes in and signs all there is. */
  async sign(): Promise<void> {
    await this.keeper.cover(await this.log.lanes.ends());
  }

  async publicKeys(): Promise<string> {
    return (await this.keys.list()).map(({ verifier }) => `${verifier}\n`).join('');
  }

  async notes(): Promise<string[]> {
    return (await this.store.latest()).map(({ note }) => note);
  }

  async export(selection: ExportSelection = {}): Promise<string> {
    let text = '';
    const write = (piece: string): Promise<void> => {
      text += piece;
      return Promise.resolve();
    };
    const proof = new ExportProof(this.log, this.store, this.keeper, this.keys);
    await exportSessions(this.log, selection, write, proof);
    return text;
  }

  async audit(kept?: readonly string[]): Promise<AuditedLog> {
    const { log, store } = this;
    return auditLog({ log, store, keys: readKeys(await this.publicKeys()), kept });
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}

/** Verifies the text of an export as a file of its own. */
export async function verified(text: string, keys: string): Promise<VerifiedExport> {
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-proof-'));
  try {
    const file = join(folder, 'export.jsonl');
    await writeFile(file, text);
    return await verifyExport(file, keys);
  } finally {
    await rm(folder, { recursive: true });
  }
}
