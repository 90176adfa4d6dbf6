// What every program here is given (one JSON list of calls) and prints (one JSON line for each, of what its client saw).

class Seen {
  #began = performance.now();
  text = "";
  id = "";
  pieces = 0;
  finish = null;
  pictures = [];
  data = [];

  /** The next piece of text was shown to the user. */
  show(text) {
    this.text += text;
    this.pieces += 1;
  }

  /** Whatever the client threw is part of what was seen. */
  failed({ constructor, status, statusCode, code, type, param, message }) {
    Object.assign(this, { error: constructor.name, status: status ?? statusCode ?? null, code, type, param, message });
  }

  end() {
    this.took_s = (performance.now() - this.#began) / 1000;
    return JSON.stringify(this);
  }
}

/** Makes all the calls at once, each as its kind says; prints in their order. */
export async function main(kinds) {
  const make = async (call) => {
    const seen = new Seen();
    try {
      await kinds[call.kind](call, seen);
    } catch (error) {
      seen.failed(error);
    }
    return seen.end();
  };
  const lines = await Promise.all(JSON.parse(process.argv[2]).map(make));
  process.stdout.write(lines.join("\n") + "\n", () => process.exit());
}

export const messages = (call) => [{ role: "user", content: call.say }];
