import { type Fields, fieldsOf, listOf } from '../domain/loose-json.js';
import { type ToolCall, type Usage } from '../domain/session.events.js';
import { type AnswerEnd, type Reasoning } from './chat-model.js';
import { brokenOff, ProviderError, reasonOf, tooLong } from './provider-errors.js';

/**
 * Bytes that a piece without text counts for. Otherwise a provider that sends only such pieces would never reach the
 * limit.
 */
const EMPTY_PIECE_BYTES = 16;

// No oddity of a server that imitates the API is worth the reply.
const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');
const countOf = (value: unknown): number | undefined =>
  Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : undefined;

/** Puts an answer together from the pieces of a stream, or from a whole answer that came instead of one. */
export class Answer {
  private readonly calls: { readonly index: number | undefined; readonly call: ToolCall }[] = [];
  private finishReason: string | undefined;
  private usage: Usage | undefined;
  private bytes = 0;
  private reasoning = '';
  private late = '';
  private hasText = false;
  private summary = '';
  private encrypted = '';
  private refusal = '';

  constructor(private readonly maxBytes: number) {}

  /**
   * @param data one piece as JSON
   * @param event the name of the server-sent event that the piece came with
   * @returns the text of the piece, and what was thought before there was any
   * @throws ModelError when the answer exceeds the limit; ProviderError when the piece reports an error; SyntaxError
   * when it is not JSON
   */
  add(data: string, event?: string): { readonly text: string; readonly reasoning: string } {
    // Some servers keep a connection open by events without data.
    if (data.trim() === '') return { text: '', reasoning: '' };
    const piece = fieldsOf(JSON.parse(data));
    if (Boolean(piece['error']) || event === 'error')
      throw new ProviderError(reasonOf(piece['error'] ?? piece));
    const choices = listOf(piece['choices']).map(fieldsOf);
    // With several choices, which nobody asked for, only the first one is the answer.
    const choice = choices.find(({ index }) => (index ?? 0) === 0) ?? {};
    const delta = fieldsOf(choice['delta'] ?? choice['message']);
    const said = contentOf(delta['content']);
    const refusal = said === '' ? textOf(delta['refusal']) : '';
    const text = said + refusal;
    // Whatever is said after a refusal is part of the text, and then so is the refusal.
    this.refusal = said === '' ? this.refusal + refusal : '';
    const thought = this.addReasoning(delta);
    let size = Buffer.byteLength(text) + thought.bytes;
    this.hasText ||= text !== '';
    for (const part of listOf(delta['tool_calls'])) size += this.addCall(fieldsOf(part));
    this.bytes += size === 0 ? EMPTY_PIECE_BYTES : size;
    if (this.bytes > this.maxBytes) throw tooLong(this.maxBytes);
    // Some servers send an empty reason with every piece.
    this.finishReason = textOf(choice['finish_reason']) || this.finishReason;
    this.usage = usageOf(fieldsOf(piece['usage'])) ?? this.usage;
    return { text, reasoning: thought.early };
  }

  end(): AnswerEnd {
    const { calls, finishReason, usage, refusal } = this;
    const reasoning = this.reasoned();
    // A connection that breaks between two pieces looks like the end of the stream; only the missing reason tells.
    if (finishReason === undefined) throw brokenOff(undefined);
    return {
      toolCalls: calls.map(({ call }) => call),
      finishReason,
      ...(usage && { usage }),
      ...(reasoning && { reasoning }),
      ...(refusal !== '' && { refusal }),
    };
  }

  /**
   * Adds what a piece has of the model's reasoning. Servers have three names for it, and some use two of them for the
   * same text.
   * @returns the bytes that it brought, and what is thought before the first text
   */
  private addReasoning(delta: Fields): { readonly bytes: number; readonly early: string } {
    const details = listOf(delta['reasoning_details']).map(fieldsOf);
    const detail = (name: string): string => details.map((one) => textOf(one[name])).join('');
    const text =
      textOf(delta['reasoning_content']) ||
      detail('text') ||
      thoughtsOf(delta['content']) ||
      (details.length === 0 ? textOf(delta['reasoning']) : '');
    const [summary, encrypted] = [detail('summary'), detail('data')];
    const early = this.hasText ? '' : text;
    this.reasoning += early;
    if (early === '') this.late += text;
    this.summary += summary;
    this.encrypted += encrypted;
    return { bytes: Buffer.byteLength(text + summary + encrypted), early };
  }

  private reasoned(): Reasoning | undefined {
    const { reasoning: text, late, summary, encrypted } = this;
    if (text + late + summary + encrypted === '') return undefined;
    return {
      ...(text !== '' && { text }),
      ...(late !== '' && { late }),
      ...(summary !== '' && { summary: [summary] }),
      ...(encrypted !== '' && { encrypted }),
    };
  }

  /**
   * Adds a piece of a tool call to the call that it belongs to. An id or an index tells which; a server may send either,
   * or one index for all calls. Without both it goes on with the last one.
   * @returns the bytes that it brought
   */
  private addCall(part: Fields): number {
    const id = textOf(part['id']);
    const index = countOf(part['index']);
    const { name, arguments: given } = fieldsOf(part['function']);
    const named = textOf(name);
    const text = typeof given === 'object' && given !== null ? JSON.stringify(given) : textOf(given);
    const isOf = (one: (typeof this.calls)[number]): boolean =>
      (id === '' || one.call.id === '' || one.call.id === id) && (index === undefined || one.index === index);
    const known = this.calls.findLast(isOf);
    // A piece that names a tool begins a call, unless it repeats what is known of one.
    const begins = named !== '' && id === '' && index === undefined && known?.call.name !== '';
    const call = (begins ? undefined : known?.call) ?? { id: '', name: '', arguments: '' };
    if (call !== known?.call) this.calls.push({ index, call });
    call.id ||= id;
    call.name ||= named;
    call.arguments += text;
    return Buffer.byteLength(text);
  }
}

/** The text of a content that is a text or a list of parts. */
const contentOf = (content: unknown): string =>
  typeof content === 'string'
    ? content
    : listOf(content)
        .map(fieldsOf)
        .map((part) => (part['type'] === 'text' ? textOf(part['text']) : ''))
        .join('');

/** The thoughts among the parts of a content. */
const thoughtsOf = (content: unknown): string =>
  listOf(content)
    .map(fieldsOf)
    .flatMap((part) => (part['type'] === 'thinking' ? [contentOf(part['thinking'])] : []))
    .join('');

function usageOf(usage: Fields): Usage | undefined {
  const inputTokens = countOf(usage['prompt_tokens']);
  const outputTokens = countOf(usage['completion_tokens']);
  if (inputTokens === undefined || outputTokens === undefined) return undefined;
  const cachedTokens = countOf(fieldsOf(usage['prompt_tokens_details'])['cached_tokens']);
  const reasoningTokens = countOf(fieldsOf(usage['completion_tokens_details'])['reasoning_tokens']);
  return {
    inputTokens,
    outputTokens,
    ...(cachedTokens !== undefined && { cachedTokens }),
    ...(reasoningTokens !== undefined && { reasoningTokens }),
  };
}
