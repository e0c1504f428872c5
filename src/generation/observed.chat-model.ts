import { type Telemetry } from '../event-store/telemetry.js';
import { type ChatModel, ModelError } from './chat-model.js';

/** The same model with telemetry: each call reports how it ended, how long it took and how many tokens it used. */
export const observed = (observedModel: ChatModel, telemetry: Telemetry): ChatModel => ({
  async answer(request, conditions) {
    let began = performance.now();
    // The time until the request may be sent is not time of the model, so it is not measured.
    conditions.when?.then(
      () => (began = performance.now()),
      () => undefined,
    );
    let firstTextMs: number | undefined;
    const report = (outcome: 'completed' | 'failed' | 'timeout' | 'cancelled', tokens = NO_TOKENS): void => {
      const ms = performance.now() - began;
      const { model, correlationId } = request;
      telemetry.emit('modelCalled', { model, correlationId, outcome, ms, firstTextMs, ...tokens });
    };
    try {
      const end = await observedModel.answer(request, {
        ...conditions,
        onText: (text) => {
          firstTextMs ??= performance.now() - began;
          conditions.onText(text);
        },
      });
      report('completed', end.usage);
      return end;
    } catch (error) {
      const outcome =
        error instanceof ModelError ? (error.code === 'model-timeout' ? 'timeout' : 'failed') : 'cancelled';
      report(outcome);
      throw error;
    }
  },
});

const NO_TOKENS = { inputTokens: 0, outputTokens: 0 };
