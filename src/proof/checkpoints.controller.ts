import { Controller, Get, Param, Query } from '@nestjs/common';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { EventLog } from '../event-store/log.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { leafText } from './leaf.js';
import { MerkleStore, type SignedCheckpoint } from './merkle-store.js';
import { Notary } from './notary.js';
import { NotaryKeys } from './notary-keys.js';
import { Proofs } from './proofs.js';

const whole = z.int().nonnegative();
const position = z.coerce.number().int().min(1).max(Number.MAX_SAFE_INTEGER);
const lanePath = z.coerce.number().int().min(0).max(32_767);
const hashes = z.array(z.base64()).meta({ description: 'SHA-256 each, in base64' });
const size = position.meta({
  description: 'number of events that the tree is of; default: that of the last checkpoint',
});

const Checkpoint = z
  .object({
    lane: whole,
    size: whole.meta({ description: 'number of events, and so the position of the last of them' }),
    time: z.iso.datetime(),
    note: z.string().meta({ description: 'a signed note (C2SP tlog-checkpoint)' }),
  })
  .meta({ id: 'Checkpoint' });
const CheckpointList = z
  .object({
    log: z.string().meta({ description: 'what the origin of each checkpoint begins with' }),
    keys: z
      .array(
        z.object({
          id: z.string(),
          name: z.string(),
          verifier: z
            .string()
            .meta({ description: 'the public key: `name+id+base64`, as verifiers take it' }),
          createdAt: z.iso.datetime(),
          retiredAt: z.iso.datetime().nullable(),
        }),
      )
      .meta({ description: 'all keys that have signed, the oldest first; none without a master key' }),
    behind: whole.meta({ description: 'events that no tree has taken in yet' }),
    data: z.array(Checkpoint).meta({ description: 'the last checkpoint of each lane' }),
  })
  .meta({ id: 'CheckpointList' });
const InclusionProof = z
  .object({
    lane: whole,
    position: whole,
    leaf: z
      .string()
      .meta({ description: 'the envelope of the event and its commitment, which the leaf is the hash of' }),
    path: hashes,
    checkpoint: Checkpoint,
    tlogProof: z
      .string()
      .meta({ description: 'the same as C2SP tlog-proof has it, with the leaf as its extra data' }),
  })
  .meta({ id: 'InclusionProof' });
const ConsistencyProof = z
  .object({ lane: whole, from: whole, size: whole, path: hashes })
  .meta({ id: 'ConsistencyProof' });

const InclusionQuery = z.strictObject({ position, size: size.optional() });
const ConsistencyQuery = z.strictObject({
  from: position.meta({ description: 'number of events of the smaller tree' }),
  size: size.optional(),
});

/** What the notary has signed, and proofs of it. Positions tell how much all tenants write, so they are for operators. */
@Controller('v1/checkpoints')
export class CheckpointsController {
  constructor(
    private readonly log: EventLog,
    private readonly store: MerkleStore,
    private readonly proofs: Proofs,
    private readonly keys: NotaryKeys,
    private readonly notary: Notary,
  ) {}

  @Requires('admin')
  @Get()
  @Answers(200, CheckpointList, {
    summary: 'What was signed last of each lane of the log, and the public keys',
    problems: ['database-unavailable'],
  })
  async list(): Promise<z.infer<typeof CheckpointList>> {
    const lag = await this.notary.lag();
    return {
      log: `colloquy/${this.log.id}`,
      keys: await this.keys.list(),
      behind: lag.reduce((sum, one) => sum + one, 0),
      data: await this.store.latest(),
    };
  }

  @Requires('admin')
  @Get(':lane/inclusion')
  @Answers(200, InclusionProof, {
    summary: 'That an event is in the tree of a lane (RFC 6962, section 2.1.1)',
    problems: ['not-found', 'database-unavailable'],
  })
  async inclusion(
    @Param('lane', { schema: lanePath }) lane: number,
    @Query({ schema: InclusionQuery }) query: z.infer<typeof InclusionQuery>,
  ): Promise<z.infer<typeof InclusionProof>> {
    const checkpoint = await this.checkpoint(lane, query.size);
    const [event] = await this.log.leaves.read(new Map([[lane, query.position - 1]]), 1);
    if (event?.position !== query.position || query.position > checkpoint.size)
      throw new ApiError('not-found', `The checkpoint has no position ${query.position}.`);
    const [path = []] = await this.proofs.inclusion(lane, [query.position], checkpoint.size);
    const encoded = path.map((hash) => hash.toString('base64'));
    const leaf = leafText(event);
    return {
      lane,
      position: query.position,
      leaf,
      path: encoded,
      checkpoint,
      tlogProof: [
        'c2sp.org/tlog-proof@v1',
        `extra ${Buffer.from(leaf).toString('base64')}`,
        `index ${query.position - 1}`,
        ...encoded,
        '',
        checkpoint.note,
      ].join('\n'),
    };
  }

  @Requires('admin')
  @Get(':lane/consistency')
  @Answers(200, ConsistencyProof, {
    summary: 'That a tree of a lane begins with a smaller one (RFC 6962, section 2.1.2)',
    problems: ['not-found', 'database-unavailable'],
  })
  async consistency(
    @Param('lane', { schema: lanePath }) lane: number,
    @Query({ schema: ConsistencyQuery }) { from, size: wanted }: z.infer<typeof ConsistencyQuery>,
  ): Promise<z.infer<typeof ConsistencyProof>> {
    const [head] = await this.store.heads([lane]);
    const to = wanted ?? (await this.checkpoint(lane, undefined)).size;
    if (!head || to > head.size || from > to)
      throw new ApiError('not-found', `The tree of lane ${lane} has no ${Math.max(from, to)} events.`);
    const path = await this.proofs.consistency(lane, from, to);
    return { lane, from, size: to, path: path.map((hash) => hash.toString('base64')) };
  }

  @Requires('admin')
  @Get(':lane')
  @Answers(200, Checkpoint, {
    summary: 'A checkpoint of a lane, the last one or that of a size',
    problems: ['not-found', 'database-unavailable'],
  })
  one(
    @Param('lane', { schema: lanePath }) lane: number,
    @Query({ schema: z.strictObject({ size: size.optional() }) })
    query: { readonly size?: number | undefined },
  ): Promise<SignedCheckpoint> {
    return this.checkpoint(lane, query.size);
  }

  private async checkpoint(lane: number, wanted: number | undefined): Promise<SignedCheckpoint> {
    const found =
      wanted === undefined
        ? (await this.store.latest()).find((one) => one.lane === lane)
        : await this.store.checkpoint(lane, wanted);
    if (found) return found;
    const size = wanted === undefined ? '' : ` of ${wanted} events`;
    throw new ApiError('not-found', `Nothing was signed of lane ${lane}${size}.`);
  }
}
