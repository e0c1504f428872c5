import { readFile } from 'node:fs/promises';
import { FIRST_CELL, loadConfig } from '../config.js';
import { migrate } from '../database/migrate.js';
import { type EventLog } from '../event-store/log.js';
import { checkpointTopicOf, publishedCheckpoints } from '../kafka/checkpoint-topic.js';
import { migrations } from '../migrations.js';
import { openLog } from '../open-log.js';
import { auditLog, type AuditedLog } from '../proof/audit-log.js';
import { ExportProof } from '../proof/export-proof.js';
import { MerkleStore } from '../proof/merkle-store.js';
import { NoNotaryKey, type NotaryKey, NotaryKeys } from '../proof/notary-keys.js';
import { notesIn } from '../proof/signed-note.js';
import { TreeKeeper } from '../proof/tree-keeper.js';
import {
  type Finding,
  readKeys,
  receiptsIn,
  type VerifiedExport,
  verifyExport,
  verifyReceipt,
} from '../proof/verify-export.js';
import { withDatabase } from './database.js';
import { progressBar } from './output.js';

/** Makes what an export of this log needs so that others can check it. */
export function proofOf(log: EventLog): ExportProof {
  const store = new MerkleStore(log.pool);
  const keys = new NotaryKeys(log.pool, log);
  return new ExportProof(log, store, new TreeKeeper(log, store, keys), keys);
}

export type Verified =
  | (VerifiedExport & { readonly receipts?: undefined })
  | { readonly receipts: number; readonly findings: readonly Finding[] };

/** Checks an export or receipts, by their file and a file of public keys alone. */
export async function verifyFile(file: string, keyFile: string): Promise<Verified> {
  const keys = await readFile(keyFile, 'utf8');
  const receipts = await receiptsIn(file);
  if (!receipts) return verifyExport(file, keys);
  const findings = receipts.flatMap((receipt): Finding[] => {
    const message = verifyReceipt(receipt, keys);
    const what = `the receipt of ${JSON.stringify(receipt['sessionId'])}`;
    return message === undefined ? [] : [{ line: 1, kind: 'not signed', what, message }];
  });
  return { receipts: receipts.length, findings };
}

export interface AuditLogOptions {
  readonly cell?: string | undefined;
  /** File of the public keys; those of the database unless given. */
  readonly keyFile?: string | undefined;
  /** Files with checkpoints that were kept. */
  readonly checkpoints?: readonly string[] | undefined;
  readonly fromKafka?: boolean | undefined;
}

/** Holds the log of the settings against what was signed of it. */
export async function auditLogOf({
  cell,
  keyFile,
  checkpoints = [],
  fromKafka,
}: AuditLogOptions): Promise<AuditedLog> {
  const kept = (await Promise.all(checkpoints.map((file) => readFile(file, 'utf8')))).flatMap(notesIn);
  if (fromKafka) {
    const { kafka } = loadConfig({ env: process.env, cwd: process.cwd() });
    if (kafka.brokers.length === 0)
      throw new Error('no brokers are named: set kafka.brokers, or KAFKA_BROKERS');
    kept.push(...(await publishedCheckpoints(kafka, checkpointTopicOf(kafka.topic))));
  }
  return withLog(cell, async (log) => {
    const store = new MerkleStore(log.pool);
    const known = await new NotaryKeys(log.pool, log).list();
    const text =
      keyFile === undefined
        ? known.map(({ verifier }) => verifier).join('\n')
        : await readFile(keyFile, 'utf8');
    if (text === '') throw new NoNotaryKey();
    const bar = progressBar('events');
    try {
      return await auditLog({ log, store, keys: readKeys(text), kept, onProgress: bar.update });
    } finally {
      bar.stop();
    }
  });
}

/** The keys of the notary, the oldest first. */
export const listKeys = (cell?: string): Promise<NotaryKey[]> =>
  withLog(cell, (log) => new NotaryKeys(log.pool, log).list());

/** Lets another key sign from now on. */
export const rotateKey = (cell?: string): Promise<NotaryKey[]> =>
  withLog(cell, (log) => new NotaryKeys(log.pool, log).rotate());

const withLog = <T>(cell: string | undefined, work: (log: EventLog) => Promise<T>): Promise<T> =>
  withDatabase({ create: false, cell: cell ?? FIRST_CELL }, async (database) => {
    await migrate(database.url, migrations);
    const log = await openLog(database);
    try {
      return await work(log);
    } finally {
      await log.close();
    }
  });
